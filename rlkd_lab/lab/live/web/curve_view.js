// Live curves in the page. uplot.js stands before this file, downloads.js after it.
// The widget's model holds what is shown, so any view of it shows the same.

const STEADY = { "0": "all", Escape: "all", "+": 0.5, "-": 2 };

// --- numbers -------------------------------------------------------------------------------------

function floats(packed) {
  if (!packed || packed.buffer === undefined) return Array.from(packed ?? []);
  const { buffer, byteOffset, byteLength } = packed;
  return Array.from(new Float32Array(buffer.slice(byteOffset, byteOffset + byteLength)));
}

function unpack(data) {
  const some = (one) => {
    const arrays = ["x", "y", "low", "high"].filter((key) => key in one);
    return { ...one, ...Object.fromEntries(arrays.map((key) => [key, floats(one[key])])) };
  };
  const panels = (data.panels ?? []).map((panel) => ({
    ...panel,
    lines: panel.lines.map(some),
    bands: panel.bands.map(some),
  }));
  return { ...data, panels };
}

const short = (value) => String(Number(value.toPrecision(3))).replace("-", "−");

// The value of a line at a step, or the one before it; undefined where the line is not.
function valueAt(line, step) {
  if (!line.x.length || step < line.x[0] || step > line.x[line.x.length - 1]) return undefined;
  let [from, to] = [0, line.x.length - 1];
  while (from < to) {
    const middle = Math.ceil((from + to) / 2);
    if (line.x[middle] <= step) from = middle;
    else to = middle - 1;
  }
  return line.y[from];
}

function heights(panel, hidden, [left, right]) {
  let [low, high] = panel.strip ? [0, 0] : [Infinity, -Infinity];
  const see = (x, y) => {
    if (x < left || x > right || !Number.isFinite(y)) return;
    low = Math.min(low, y);
    high = Math.max(high, y);
  };
  for (const line of panel.lines) {
    if (!hidden.has(line.label)) line.x.forEach((x, i) => see(x, line.y[i]));
  }
  for (const band of panel.bands) {
    if (hidden.has(band.label)) continue;
    [band.low, band.high].forEach((edge) => edge.forEach((y) => see((left + right) / 2, y)));
  }
  if (low > high) [low, high] = [0, 1];
  const room = 0.06 * (high - low) || 0.1 * Math.abs(high) || 0.5;
  const above = panel.strip && panel.note ? 5 : 1; // the note stands above the line
  return [panel.low ?? low - room, panel.high ?? high + above * room];
}

// --- colours -------------------------------------------------------------------------------------

const parts = (colour) => {
  const pen = document.createElement("canvas").getContext("2d");
  pen.fillStyle = colour;
  pen.fillRect(0, 0, 1, 1);
  return [...pen.getImageData(0, 0, 1, 1).data.slice(0, 3)];
};
const light = (rgb) => {
  const [r, g, b] = rgb.map((part) => (part / 255) ** 2.2);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const contrast = (one, other) => {
  const [low, high] = [light(one), light(other)].sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
};

// A colour that is told from the ground: mixed with the text's until it is.
function seen(colour, { ground, text }) {
  const rgb = parts(colour);
  for (let share = 0; share < 1; share += 0.1) {
    const mixed = rgb.map((part, i) => Math.round(part * (1 - share) + text[i] * share));
    if (contrast(mixed, ground) >= 3) return `rgb(${mixed})`;
  }
  return `rgb(${text})`;
}

// --- drawing -------------------------------------------------------------------------------------

const dashes = (line) => line.dash.map((part) => part * line.width);

function hatched(pen, band, colour, ground) {
  const tile = document.createElement("canvas");
  tile.width = tile.height = 8;
  const ink = tile.getContext("2d");
  ink.fillStyle = colour;
  ink.fillRect(0, 0, 8, 8);
  ink.fillStyle = ink.strokeStyle = ground;
  if (band.hatch === "//") [-4, 4].forEach((x) => (ink.moveTo(x, 8), ink.lineTo(x + 8, 0)));
  if (band.hatch === "..") [[1, 1], [5, 5]].forEach(([x, y]) => ink.fillRect(x, y, 2, 2));
  ink.stroke();
  return pen.createPattern(tile, "repeat");
}

function inBox(u, paint) {
  const { ctx, bbox } = u;
  ctx.save();
  ctx.beginPath();
  ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
  ctx.clip();
  paint(ctx, bbox, window.devicePixelRatio || 1);
  ctx.restore();
}

function paintBands(u, { panel, hidden, look }) {
  inBox(u, (pen, box, scale) => {
    for (const band of panel.bands) {
      if (hidden.has(band.label) || !band.x.length) continue;
      const at = (x, y) => [u.valToPos(x, "x", true), u.valToPos(y, "y", true)];
      pen.beginPath();
      band.x.forEach((x, i) => pen.lineTo(...at(x, band.low[i])));
      for (let i = band.x.length - 1; i >= 0; i -= 1) pen.lineTo(...at(band.x[i], band.high[i]));
      pen.globalAlpha = band.alpha;
      const colour = band.alpha === 1 ? band.colour : seen(band.colour, look);
      pen.fillStyle = band.hatch ? hatched(pen, band, colour, `rgb(${look.ground})`) : colour;
      pen.fill();
    }
    if (!panel.strip) return;
    pen.globalAlpha = 0.6;
    pen.fillStyle = `rgb(${look.text})`;
    pen.fillRect(box.left, u.valToPos(0, "y", true), box.width, scale);
  });
}

function paintMoves(u, { panel, data, look }) {
  inBox(u, (pen, box, scale) => {
    pen.fillStyle = pen.strokeStyle = `rgb(${look.text})`;
    pen.font = `${11 * scale}px system-ui, sans-serif`;
    pen.textBaseline = "top";
    pen.globalAlpha = 0.55;
    for (const step of data.moves) pen.fillRect(u.valToPos(step, "x", true), box.top, scale, box.height);
    pen.globalAlpha = 1;
    if (panel.note) {
      pen.textAlign = panel.strip ? "left" : "center";
      const across = panel.strip ? 5 * scale : box.width / 2;
      const down = panel.strip ? 3 * scale : box.height / 2;
      pen.fillText(panel.note, box.left + across, box.top + down, box.width - 10 * scale);
    }
    if (!panel.strip) data.labels.forEach((label) => paintLabel(u, pen, box, scale, label, look));
  });
}

function paintLabel(u, pen, box, scale, { step, words }, look) {
  const x = u.valToPos(step, "x", true);
  if (x < box.left || x > box.left + box.width) return;
  const inside = x + 15 * scale < box.left + box.width;
  const long = Math.min(pen.measureText(words).width, box.height - 8 * scale);
  pen.save();
  pen.translate(x + (inside ? 2 : -15) * scale, box.top + 4 * scale + long);
  pen.rotate(-Math.PI / 2);
  pen.textAlign = "left";
  pen.fillStyle = `rgba(${look.ground}, 0.75)`;
  pen.fillRect(-2 * scale, -scale, long + 4 * scale, 14 * scale);
  pen.fillStyle = `rgb(${look.text})`;
  pen.fillText(words, 0, 0, long);
  pen.restore();
}

// --- one chart -----------------------------------------------------------------------------------

const joined = (panel) =>
  panel.lines.length ? uPlot.join(panel.lines.map((line) => [line.x, line.y])) : [[]];

function options(chart, view) {
  const { panel } = chart;
  const { look } = view;
  const [ink, faint] = [`rgb(${look.text})`, `rgba(${look.text}, 0.16)`];
  const axis = { stroke: ink, font: "11px system-ui, sans-serif", grid: { stroke: faint, width: 1 } };
  axis.ticks = { ...axis.grid, size: 4 };
  const series = panel.lines.map((line) => ({
    label: line.label,
    show: !view.hidden.has(line.label),
    stroke: seen(line.colour, look),
    alpha: light(look.ground) < 0.2 ? Math.sqrt(line.alpha) : line.alpha, // faint is not unseen
    width: line.width,
    dash: dashes(line),
    spanGaps: true,
    points: { show: line.dots > 0, size: 1.6 * line.dots, fill: seen(line.colour, look) },
  }));
  return {
    width: Math.max(chart.box.clientWidth, 120),
    height: panel.strip ? 120 : 220,
    legend: { show: false },
    cursor: {
      drag: { x: true, y: false, setScale: false, dist: 4 },
      // only the cursor goes along: a drag on one panel zooms all of them, once
      sync: { key: view.id, scales: ["x", null], filters: { pub: (type) => /^mouse(move|leave)$/.test(type) } },
      bind: { dblclick: () => () => view.zoomTo(null) },
    },
    scales: {
      x: { time: false, range: () => view.range() },
      y: {
        distr: panel.symlog ? 4 : 1,
        asinh: 0.1,
        range: () => heights(chart.panel, view.hidden, view.range()),
      },
    },
    axes: [
      { ...axis, size: 26, space: 45, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5] },
      { ...axis, size: 46, space: 28, values: (u, at) => at.map((one) => (one === null ? "" : short(one))) },
    ],
    series: [{}, ...series],
    hooks: {
      drawAxes: [(u) => paintBands(u, { ...view, panel: chart.panel })],
      draw: [(u) => paintMoves(u, { ...view, panel: chart.panel })],
      setCursor: [(u) => chart.say(u.cursor.idx)],
      setSelect: [
        (u) => {
          const { left, width } = u.select;
          if (width > 3) view.zoomTo([u.posToVal(left, "x"), u.posToVal(left + width, "x")]);
          u.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
        },
      ],
    },
  };
}

// The words of a panel at a step: the value of every line that is shown.
function readout(panel, hidden, step) {
  const named = panel.lines.filter((line) => !line.raw && !hidden.has(line.label));
  const lines = panel.strip ? named.slice(0, 1) : named; // there is little room
  const raw = panel.lines.find((line) => line.raw && !hidden.has(line.label));
  const said = lines.map((line) => [line.label, valueAt(line, step)]);
  const words = said.filter(([, value]) => value !== undefined).map(([label, value]) => `${label} ${short(value)}`);
  const alone = raw && valueAt(raw, step);
  if (alone !== undefined) words.push(`this step alone ${short(alone)}`);
  return words.length ? `step ${short(step)}: ${words.join(" · ")}` : "";
}

// The step that is read where nobody points: the last one of the run, not of faint runs beside it.
function lastStep({ lines }) {
  const own = lines.filter((line) => line.alpha === 1);
  return Math.max(...(own.length ? own : lines).map((line) => line.x[line.x.length - 1]));
}

function makeChart(panel, view) {
  const chart = { panel, place: document.createElement("div") };
  chart.place.className = panel.strip ? "chart strip" : "chart";
  chart.place.innerHTML = `<div class="title"></div><div class="plot" tabindex="0" role="img"></div><div class="readout"></div>`;
  const [title, box, words] = chart.place.children;
  chart.box = box;
  box.setAttribute("data-lm-suppress-shortcuts", "true"); // JupyterLab leaves its keys alone
  box.title = "Drag to zoom, double click to see all. Keys: arrows read values, + and − zoom, 0 shows all.";
  chart.say = (at) => {
    const step = at == null ? lastStep(chart.panel) : chart.u.data[0][at];
    const text = Number.isFinite(step) ? readout(chart.panel, view.hidden, step) : "";
    if (words.textContent !== text) words.textContent = text;
    title.textContent = title.title = chart.panel.title;
    box.setAttribute("aria-label", `${chart.panel.title}. ${text} ${chart.panel.note}`);
  };
  chart.draw = () => {
    chart.u?.destroy();
    chart.u = new uPlot(options(chart, view), joined(chart.panel), box);
    chart.say(null);
  };
  box.addEventListener("focus", () => words.setAttribute("aria-live", "polite"));
  box.addEventListener("blur", () => words.removeAttribute("aria-live"));
  box.addEventListener("keydown", (event) => pressed(event, chart, view));
  return chart;
}

function pressed(event, chart, view) {
  const { u } = chart;
  const [steps, [left, right]] = [u.data[0], view.range()];
  const within = steps.map((_, i) => i).filter((i) => steps[i] >= left && steps[i] <= right);
  const [first, last] = [within[0], within[within.length - 1]];
  const at = u.cursor.idx ?? last;
  const move = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: first, End: last }[event.key];
  if (move !== undefined && within.length) {
    const to = Math.min(Math.max(move, first), last);
    u.setCursor({ left: u.valToPos(steps[to], "x"), top: u.over.clientHeight / 2 }, true, true);
  } else if (event.key in STEADY) {
    const [middle, share] = [steps[at] ?? left, STEADY[event.key]];
    view.zoomTo(share === "all" ? null : [middle - (middle - left) * share, middle + (right - middle) * share]);
  } else return;
  event.preventDefault();
  event.stopPropagation();
}

// --- the view ------------------------------------------------------------------------------------

const PAGE = `<div class="bar"><div class="keys" role="group" aria-label="lines"></div>
  <div class="tools" role="group" aria-label="downloads"><button class="all" hidden>Show all steps</button>
  <span>Download</span><button data-kind="png">PNG</button><button data-kind="svg">SVG</button
  ><button data-kind="csv">CSV</button></div></div>
  <div class="panels"></div><div class="caption"><span></span><span></span></div>`;

let count = 0;

function keyMark(one, look) {
  const colour = one.alpha === 1 && !one.dash ? one.colour : seen(one.colour, look);
  if (!one.dash) return `<rect width="24" height="12" fill="${colour}" opacity="${Math.max(one.alpha, 0.35)}"/>`;
  const line = `<line y1="6" y2="6" x2="24" stroke="${colour}" stroke-width="${one.width}" stroke-dasharray="${dashes(one)}"/>`;
  return line + (one.dots ? `<circle cx="12" cy="6" r="${one.dots / 1.3}" fill="${colour}"/>` : "");
}

// Every label once, with the look of its first line or band.
function labels(data) {
  const found = new Map();
  const all = data.panels.flatMap((panel) => [...panel.lines, ...panel.bands]);
  all.filter((one) => !one.raw).forEach((one) => found.has(one.label) || found.set(one.label, one));
  return found;
}

class View {
  constructor(model, el) {
    this.model = model;
    this.id = `rlkd-curves-${(count += 1)}-${Math.random().toString(36).slice(2, 8)}`;
    this.hidden = new Set();
    this.zoom = null;
    this.charts = [];
    this.root = document.createElement("div");
    this.root.className = "rlkd-curves";
    this.root.id = this.id;
    this.root.innerHTML = PAGE;
    // While this view stands in the page, the still pictures below it do not: a picture that comes
    // next, and all up to the table. JupyterLab and Notebook 7 name their outputs so.
    // A view without its kernel is hidden itself, and they stand.
    const still = document.createElement("style");
    const [one, mark] = [".jp-OutputArea-child", ".rlkd-still"];
    const live = `${one}:has(#${this.id}):not(:has(.jupyter-widgets-disconnected))`;
    still.textContent = `${live} + ${one}:has(.jp-RenderedImage), ${live} ~
      ${one}:is(:has(${mark}), :has(~ ${one} ${mark})):not(:has(.jupyter-widgets)) { display: none }`;
    el.replaceChildren(still, this.root);
    const tools = this.root.querySelector(".tools");
    tools.addEventListener("click", ({ target }) => target.dataset.kind && download(this, target.dataset.kind));
    this.all = tools.querySelector(".all");
    this.all.addEventListener("click", () => this.zoomTo(null));
    this.root.querySelectorAll("button").forEach((one) => one.setAttribute("data-lm-suppress-shortcuts", "true"));
    this.update();
  }

  range() {
    return this.zoom ?? [0.5, this.data.right];
  }

  zoomTo(range) {
    const full = [0.5, this.data.right];
    this.zoom = range && [Math.max(range[0], full[0]), Math.min(range[1], full[1])];
    if (range && this.zoom[1] - this.zoom[0] >= full[1] - full[0]) this.zoom = null;
    this.all.hidden = !this.zoom;
    this.redraw();
  }

  themed() {
    const style = getComputedStyle(this.root);
    this.look = { text: parts(style.color), ground: parts(style.backgroundColor) };
    this.shape = "";
  }

  update() {
    this.data = unpack(this.model.get("data"));
    this.root.hidden = !this.data.panels.length;
    this.root.classList.toggle("many", this.data.group === "compare"); // their readouts need lines
    if (this.root.hidden || !this.root.isConnected) return;
    if (!this.look) this.themed(); // only in the page it has colours
    const line = ({ label, colour, dash, dots, width, alpha }) => [label, colour, dash, dots, width, alpha];
    const panels = this.data.panels.map((one) => [one.name, one.lines.map(line), one.bands.map((band) => band.label)]);
    const shape = JSON.stringify(panels);
    if (shape !== this.shape) this.build();
    this.shape = shape;
    this.charts.forEach((chart, i) => (chart.panel = this.data.panels[i]));
    this.redraw(true);
    const caption = this.root.querySelectorAll(".caption span");
    this.data.caption.forEach((words, i) => (caption[i].textContent = words));
  }

  build() {
    const columns = [];
    this.charts.forEach((chart) => chart.u.destroy());
    this.charts = this.data.panels.map((panel) => makeChart(panel, this));
    for (const chart of this.charts) {
      const column = (columns[chart.panel.column] ??= document.createElement("div"));
      column.append(chart.place);
    }
    this.root.querySelector(".panels").replaceChildren(...columns);
    this.charts.forEach((chart) => chart.draw());
    const keys = [...labels(this.data)].map(([label, one]) => this.key(label, one));
    this.root.querySelector(".keys").replaceChildren(...keys);
  }

  key(label, one) {
    const button = document.createElement("button");
    button.innerHTML = `<svg width="24" height="12" aria-hidden="true">${keyMark(one, this.look)}</svg><span></span>`;
    button.lastChild.textContent = label;
    button.title = "Hide or show this line";
    button.setAttribute("data-lm-suppress-shortcuts", "true");
    const say = () => button.setAttribute("aria-pressed", String(!this.hidden.has(label)));
    button.addEventListener("click", () => {
      if (!this.hidden.delete(label)) this.hidden.add(label);
      say();
      this.redraw();
    });
    say();
    return button;
  }

  redraw(fresh = false) {
    for (const chart of this.charts) {
      const { u, panel } = chart;
      u.batch(() => {
        panel.lines.forEach((line, i) => {
          const show = !this.hidden.has(line.label);
          if (u.series[i + 1].show !== show) u.setSeries(i + 1, { show });
        });
        u.setData(fresh ? joined(panel) : u.data);
      });
      chart.say(u.cursor.idx);
    }
  }

  resize() {
    for (const { u, box } of this.charts) {
      if (box.clientWidth && box.clientWidth !== u.width) u.setSize({ width: box.clientWidth, height: u.height });
    }
  }
}

function render({ model, el }) {
  const view = new View(model, el);
  const update = () => view.update();
  const retheme = () => setTimeout(() => (view.themed(), view.update()), 150); // its CSS comes later
  model.on("change:data", update);
  const sized = new ResizeObserver(() => (view.look ? view.resize() : view.update()));
  sized.observe(view.root);
  const theme = new MutationObserver(retheme);
  theme.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-name", "class"] });
  const scheme = window.matchMedia("(prefers-color-scheme: dark)");
  scheme.addEventListener("change", retheme);
  return () => {
    model.off("change:data", update);
    scheme.removeEventListener("change", retheme);
    [sized, theme].forEach((observer) => observer.disconnect());
    view.charts.forEach((chart) => chart.u.destroy());
  };
}
