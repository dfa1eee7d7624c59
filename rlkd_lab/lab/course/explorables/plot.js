// What the explorables share: arrays, axes, a legend, sliders. Drawings are SVG text.
// Every colour mixes with the page's text colour, so a light and a dark page both work.

const STYLE = `
.rlkd-explorable { font: 14px/1.45 system-ui, sans-serif; max-width: 56rem; margin: 1em 0;
  --blue: color-mix(in oklab, #0072B2 78%, currentColor);
  --orange: color-mix(in oklab, #D55E00 85%, currentColor);
  --green: color-mix(in oklab, #009E73 82%, currentColor);
  --purple: color-mix(in oklab, #CC79A7 85%, currentColor);
  --grey: color-mix(in srgb, currentColor 55%, transparent);
  --faint: color-mix(in srgb, currentColor 16%, transparent); }
.rlkd-explorable .controls { display: grid; gap: .25em 1.6em;
  grid-template-columns: repeat(auto-fit, minmax(min(17rem, 100%), 1fr)); }
.rlkd-explorable label { display: grid; grid-template-columns: 8.2em 1fr 3.4em; gap: .6em;
  align-items: center; margin: 0; min-height: 2em; font-size: 14px; }
.rlkd-explorable input { width: 100%; min-width: 0; margin: 0; accent-color: var(--blue); }
.rlkd-explorable .value { font-variant-numeric: tabular-nums; white-space: nowrap; }
.rlkd-explorable p { margin: .7em 0; min-height: 2.9em; }
.rlkd-explorable .drawing svg { display: block; max-width: none; color: inherit; }
.rlkd-explorable text { fill: currentColor; font-size: 12px; }
.rlkd-explorable .legend { display: flex; flex-wrap: wrap; gap: .2em 1.4em; margin-top: .4em; }
.rlkd-explorable .legend span { display: inline-flex; align-items: center; gap: .5em; }
.rlkd-explorable .legend svg { flex: none; }`;

export function linspace(from, to, count) {
  const step = (to - from) / (count - 1);
  return Array.from({ length: count }, (_, i) => (i === count - 1 ? to : i * step + from));
}

// mulberry32: the same numbers in [0, 1) as `uniforms` in Python
export function uniforms(seed, count) {
  let state = seed >>> 0;
  return Array.from({ length: count }, () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  });
}

export const defaults = (controls) =>
  Object.fromEntries(controls.map((control) => [control.name, control.value]));

export const short = (number) => String(Math.round(number * 100) / 100).replace("-", "−");

// --- drawing -------------------------------------------------------------------------------------

export function path(xs, ys, attributes) {
  const points = xs.map((x, i) => `${x.toFixed(1)} ${ys[i].toFixed(1)}`);
  return `<path d="M${points.join("L")}" fill="none" stroke-linejoin="round" ${attributes}/>`;
}

export const line = (x1, y1, x2, y2, attributes) =>
  `<line x1="${x1}" y1="${y1}" x2="${x2}" y2="${y2}" ${attributes}/>`;

export const words = (x, y, text, attributes = "") =>
  `<text x="${x}" y="${y}" ${attributes}>${text}</text>`;

export function arrow(from, to, width, attributes) {
  const length = Math.hypot(to[0] - from[0], to[1] - from[1]);
  const [u, v] = [(to[0] - from[0]) / length, (to[1] - from[1]) / length];
  const head = Math.min(length, 5 + 2 * width);
  const [x, y] = [to[0] - u * head, to[1] - v * head];
  const corners = [to, [x - v * head * 0.5, y + u * head * 0.5], [x + v * head * 0.5, y - u * head * 0.5]];
  const shaft = line(from[0], from[1], x, y, `stroke="currentColor" stroke-width="${width}"`);
  return `<g ${attributes}>${shaft}<polygon points="${corners.join(" ")}" fill="currentColor"/></g>`;
}

export const hatch = (id) => `<defs><pattern id="${id}" width="7" height="7"
  patternUnits="userSpaceOnUse" patternTransform="rotate(45)"><rect width="7" height="7"
  fill="var(--faint)"/><line y2="7" stroke="var(--grey)"/></pattern></defs>`;

function ticks([from, to], count) {
  const rough = (to - from) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((one) => one * power).find((one) => one >= rough);
  const first = Math.ceil(from / step - 1e-9);
  const last = Math.floor(to / step + 1e-9);
  return Array.from({ length: last - first + 1 }, (_, i) => (first + i) * step);
}

// A frame on the page: x and y place values in it, and draw(content) returns it with its labels.
export function axes({ left, top, width, height, x, y, xLabel, yLabel, xTicks, yTicks }) {
  const place = ([from, to], size) => (value) => ((value - from) / (to - from)) * size;
  const [across, up] = [place(x, width), place(y, height)];
  const atX = xTicks ?? ticks(x, width / 70).map((tick) => [tick, short(tick)]);
  const atY = yTicks ?? ticks(y, height / 45).map((tick) => [tick, short(tick)]);
  const below = atX.map(([at, text]) => words(left + across(at), top + height + 17, text, 'text-anchor="middle"'));
  const beside = atY.map(([at, text]) => words(left - 7, top + height - up(at) + 4, text, 'text-anchor="end"'));
  const grid = [
    ...atX.map(([at]) => line(across(at), 0, across(at), height, 'stroke="var(--faint)"')),
    ...atY.map(([at]) => line(0, height - up(at), width, height - up(at), 'stroke="var(--faint)"')),
  ];
  const labels =
    words(left, top - 9, yLabel) +
    words(left + width / 2, top + height + 37, xLabel, 'text-anchor="middle"');
  return {
    width,
    height,
    x: across,
    y: (value) => height - up(value),
    draw: (content) =>
      `${below.join("")}${beside.join("")}${labels}<svg x="${left}" y="${top}" width="${width}"
       height="${height}" overflow="hidden">${grid.join("")}${content}</svg><rect x="${left}" y="${top}"
       width="${width}" height="${height}" fill="none" stroke="var(--grey)"/>`,
  };
}

// A line of the legend: a mark in a box of 26 × 14, and what it means.
export const key = (mark, text) =>
  `<span><svg width="26" height="14" aria-hidden="true">${mark}</svg>${text}</span>`;

export const lineKey = (attributes, text) => key(line(1, 7, 25, 7, attributes), text);
export const boxKey = (attributes, text) =>
  key(`<rect x="1" y="1" width="24" height="12" stroke="var(--grey)" ${attributes}/>`, text);

// --- sliders -------------------------------------------------------------------------------------

function slider(control, values, changed) {
  const { name, label, options, show = (value) => (value === null ? "off" : short(value)) } = control;
  const row = document.createElement("label");
  row.innerHTML = `<span>${label}</span><input type="range"><span class="value" aria-hidden="true"></span>`;
  const input = row.querySelector("input");
  const { min, max, step } = options ? { min: 0, max: options.length - 1, step: 1 } : control;
  Object.assign(input, { min, max, step });
  input.value = options ? options.indexOf(values[name]) : values[name];
  input.setAttribute("aria-label", label);
  input.setAttribute("data-lm-suppress-shortcuts", "true"); // JupyterLab leaves its keys alone
  const say = () => {
    row.querySelector(".value").textContent = show(values[name]);
    input.setAttribute("aria-valuetext", show(values[name]));
  };
  input.addEventListener("input", () => {
    values[name] = options ? options[Number(input.value)] : Number(input.value);
    say();
    changed();
  });
  say();
  return row;
}

let count = 0;

// draw({ values, found, width, id }) returns { size: [width, height], svg, sentence, legend }.
export function view({ controls, numbers, draw }) {
  function render({ model, el }) {
    const values = { ...defaults(controls), ...(model ? model.get("values") : {}) };
    const data = model ? model.get("data") : {};
    const id = `rlkd-explorable-${(count += 1)}`;
    const root = document.createElement("div");
    root.className = "rlkd-explorable";
    root.innerHTML = `<style>${STYLE}</style><div class="controls"></div><p aria-live="polite"></p>
      <div class="drawing"></div><div class="legend"></div>`;
    const [sentence, drawing, legend] = ["p", ".drawing", ".legend"].map((one) => root.querySelector(one));
    let shown = 0;
    const redraw = () => {
      shown = drawing.clientWidth;
      const all = { ...values, ...data };
      const drawn = draw({ values: all, found: numbers(all), width: shown || 640, id });
      const [width, height] = drawn.size;
      drawing.innerHTML = `<svg width="${width}" height="${height}" role="img">${drawn.svg}</svg>`;
      drawing.firstChild.setAttribute("aria-label", drawn.sentence);
      sentence.textContent = drawn.sentence;
      legend.innerHTML = drawn.legend.join("");
    };
    const changed = () => {
      redraw();
      if (!model) return;
      model.set("values", { ...values });
      model.save_changes();
    };
    root.querySelector(".controls").append(...controls.map((one) => slider(one, values, changed)));
    el.replaceChildren(root);
    redraw();
    const observer = new ResizeObserver(() => drawing.clientWidth !== shown && redraw());
    observer.observe(drawing);
    return () => observer.disconnect();
  }
  return { render, mount: (el) => render({ el }) };
}
