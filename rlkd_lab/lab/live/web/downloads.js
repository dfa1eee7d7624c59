// The curves as files, as they are shown: CSV, SVG on white, and PNG, which is the SVG in pixels.

// --- CSV -----------------------------------------------------------------------------------------

function csv(data, hidden, [left, right]) {
  const rows = [["metric", "line", "step", "value"]];
  const add = (panel, label, xs, ys) =>
    xs.forEach((x, i) => x >= left && x <= right && rows.push([panel.name, label, x, ys[i]]));
  for (const panel of data.panels) {
    for (const line of panel.lines.filter((one) => !hidden.has(one.label))) {
      add(panel, line.raw ? `${line.label}, each step` : line.label, line.x, line.y);
    }
    for (const band of panel.bands.filter((one) => !hidden.has(one.label))) {
      add(panel, `${band.label}, lower edge`, band.x, band.low);
      add(panel, `${band.label}, upper edge`, band.x, band.high);
    }
  }
  const cell = (one) => {
    if (typeof one === "number") return String(Number(one.toPrecision(8)));
    return /[",\n]/.test(one) ? `"${one.replaceAll('"', '""')}"` : one;
  };
  return rows.map((row) => row.map(cell).join(",")).join("\n") + "\n";
}

// --- SVG -----------------------------------------------------------------------------------------

const escaped = (text) =>
  text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;").replaceAll('"', "&quot;");
const written = (x, y, text, how = "") => `<text x="${x}" y="${y}" ${how}>${escaped(text)}</text>`;
const fixed = (value) => value.toFixed(1);

function outline(band, at) {
  const there = band.x.map((x, i) => at(x, band.low[i]));
  return [...there, ...band.x.map((x, i) => at(x, band.high[i])).reverse()].join("L");
}

function svgAxes(u, { left, top, width, height }) {
  const [across, up] = [0, 1].map((k) => {
    const { _splits: at, _values: said } = u.axes[k];
    return (at ?? []).map((one, i) => [one, said[i] ?? ""]);
  });
  const grid = 'stroke="#dddddd"';
  const xs = across.map(([at, text]) => {
    const x = fixed(left + u.valToPos(at, "x"));
    return `<line x1="${x}" x2="${x}" y1="${top}" y2="${top + height}" ${grid}/>` +
      written(x, top + height + 15, text, 'text-anchor="middle"');
  });
  const ys = up.map(([at, text]) => {
    const y = fixed(top + u.valToPos(at, "y"));
    return `<line x1="${left}" x2="${left + width}" y1="${y}" y2="${y}" ${grid}/>` +
      written(left - 6, Number(y) + 4, text, 'text-anchor="end"');
  });
  return xs.join("") + ys.join("");
}

function svgChart({ u, panel }, view, origin, id) {
  const over = u.over.getBoundingClientRect();
  const [left, top] = [over.left - origin.left, over.top - origin.top];
  const box = { left, top, width: over.width, height: over.height };
  const at = (x, y) => `${fixed(left + u.valToPos(x, "x"))} ${fixed(top + u.valToPos(y, "y"))}`;
  const shown = (one) => !view.hidden.has(one.label) && one.x.length;
  const drawn = panel.bands.filter(shown).map(
    (band) => `<path d="M${outline(band, at)}Z" fill="${band.colour}" opacity="${band.alpha}"/>`
  );
  for (const line of panel.lines.filter(shown)) {
    const points = line.x.map((x, i) => [x, line.y[i]]).filter(([, y]) => Number.isFinite(y));
    const dash = line.dash.length ? `stroke-dasharray="${dashes(line)}"` : "";
    drawn.push(`<path d="M${points.map((one) => at(...one)).join("L")}" fill="none" stroke="${line.colour}"
      stroke-width="${line.width}" opacity="${line.alpha}" ${dash}/>`);
    if (!line.dots) continue;
    const dot = ([x, y]) => `<circle transform="translate(${at(x, y)})" r="${line.dots / 1.3}" fill="${line.colour}"/>`;
    drawn.push(...points.map(dot));
  }
  for (const step of view.data.moves) {
    const x = fixed(left + u.valToPos(step, "x"));
    drawn.push(`<line x1="${x}" x2="${x}" y1="${top}" y2="${top + box.height}" stroke="#666666"/>`);
  }
  for (const { step, words } of panel.strip ? [] : view.data.labels) {
    const x = left + u.valToPos(step, "x");
    const beside = x + 15 < left + box.width ? x + 11 : x - 4;
    const turned = `transform="rotate(-90 ${fixed(beside)} ${top + 4})" text-anchor="end"`;
    drawn.push(written(fixed(beside), top + 4, words, turned));
  }
  if (panel.note) drawn.push(written(left + 5, top + (panel.strip ? 13 : box.height / 2), panel.note));
  const place = `x="${left}" y="${top}" width="${box.width}" height="${box.height}"`;
  return `<clipPath id="${id}"><rect ${place}/></clipPath>${svgAxes(u, box)}
    <g clip-path="url(#${id})">${drawn.join("")}</g><rect ${place} fill="none" stroke="#999999"/>
    ${written(left, top - 6, panel.title, 'font-size="13"')}`;
}

function svg(view) {
  const origin = view.root.querySelector(".panels").getBoundingClientRect();
  const width = Math.max(origin.width, 300);
  const charts = view.charts.map((chart, i) => svgChart(chart, view, origin, `${view.id}-${i}`));
  const [keys, paper] = [[], { text: [34, 34, 34], ground: [255, 255, 255] }];
  let [x, y] = [8, origin.height + 14];
  for (const [label, one] of labels(view.data)) {
    if (view.hidden.has(label)) continue;
    const wide = 48 + 6.5 * label.length;
    if (x > 8 && x + wide > width) [x, y] = [8, y + 20];
    keys.push(`<g transform="translate(${x} ${y - 6})">${keyMark(one, paper)}</g>` + written(x + 30, y + 4, label));
    x += wide;
  }
  const caption = written(8, y + 26, view.data.caption.join(" · "));
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${fixed(width)}" height="${fixed(y + 40)}"
    font-family="sans-serif" font-size="11" fill="#222222"><rect width="100%" height="100%" fill="white"/>
    ${charts.join("")}${keys.join("")}${caption}</svg>`;
}

// --- files ---------------------------------------------------------------------------------------

function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

function download(view, kind) {
  const name = `${view.model.get("name") || "curves"}.${kind}`;
  if (kind === "csv") return save(new Blob([csv(view.data, view.hidden, view.range())], { type: "text/csv" }), name);
  const drawing = new Blob([svg(view)], { type: "image/svg+xml" });
  if (kind === "svg") return save(drawing, name);
  const image = new Image();
  image.onload = () => {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [2 * image.width, 2 * image.height];
    const pen = canvas.getContext("2d");
    pen.scale(2, 2);
    pen.drawImage(image, 0, 0);
    URL.revokeObjectURL(image.src);
    canvas.toBlob((blob) => save(blob, name), "image/png");
  };
  image.src = URL.createObjectURL(drawing);
}
