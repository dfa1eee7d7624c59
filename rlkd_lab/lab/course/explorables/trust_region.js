// Where TRRD's gradient is not 0, over log π_old/π_T and log π_θ/π_old.
import { axes, boxKey, defaults, hatch, key, line, linspace, short, uniforms, view, words } from "./plot.js";

const controls = [
  { name: "alpha", label: "α", value: 0.5, min: 0, max: 1, step: 0.05 },
  { name: "gap_bound", label: "gap bound, nats", value: 1, options: [0.3, 1, 2, null] },
  { name: "clip_low", label: "ε_low", value: 0.2, min: 0, max: 0.9, step: 0.05 },
  { name: "clip_high", label: "ε_high", value: 0.2, min: 0, max: 1, step: 0.05 },
  { name: "ratio_cap", label: "cap at A < 0", value: 3, options: [1.5, 3, null] },
];
const [DEAD, BOUNDED, ALIVE] = [0, 1, 2];
const FILL = ["", "color-mix(in srgb, var(--green) 20%, transparent)", "color-mix(in srgb, var(--green) 48%, transparent)"];

// The gradient at log π_θ, as a function of log π_old/π_T, log π_θ/π_old and A.
function gradientOf({ alpha, clip_low, clip_high, gap_bound, ratio_cap }) {
  const bound = gap_bound ?? Infinity;
  const cap = ratio_cap ?? Infinity;
  return (gap, moved, advantage) => {
    const toTeacher = gap + moved;
    const toOld = toTeacher - gap;
    const bounded = Math.abs(toTeacher) > bound;
    const anchor = bounded ? Math.sign(toTeacher) * bound : toTeacher;
    const ratio = Math.exp(alpha === 1 ? toOld : alpha * toOld + (1 - alpha) * anchor);
    const slope = bounded && alpha < 1 ? alpha : 1;
    const dead = advantage > 0 ? ratio > 1 + clip_high : ratio < 1 - clip_low || ratio > cap;
    return dead ? 0 : ratio * slope * advantage;
  };
}

function states(gaps, moves, sign, values) {
  const gradient = gradientOf(values);
  const bound = values.alpha < 1 ? values.gap_bound ?? Infinity : Infinity;
  const found = [];
  for (const moved of moves) {
    for (const gap of gaps) {
      const dead = gradient(gap, moved, sign) === 0;
      found.push(dead ? DEAD : Math.abs(gap + moved) > bound ? BOUNDED : ALIVE);
    }
  }
  return found;
}

// The probability ratio above which a token is dead before any update; null where none is.
function threshold(sign, { alpha, clip_low, clip_high, gap_bound }) {
  if (alpha === 1) return null;
  const edge = Math.abs(Math.log(sign > 0 ? 1 + clip_high : 1 - clip_low)) / (1 - alpha);
  if (gap_bound === null || edge < gap_bound) return Math.exp(edge);
  return alpha === 0 ? Math.exp(gap_bound) : null; // at α = 0 nothing is left beyond the bound
}

// log π_old/π_T on the axis: linear, or logarithmic further out for distant tokens
function gapAxis(tokens) {
  const furthest = tokens ? Math.max(...tokens.gap.map(Math.abs)) : 0;
  const far = furthest > 2.4;
  const place = (gap) => (far ? Math.asinh(2 * gap) : gap);
  const gap = (at) => (far ? Math.sinh(at) / 2 : at);
  return { far, furthest, place, gap, edge: place(far ? 1.3 * furthest : 2.5) };
}

export function numbers(params = {}) {
  const values = { ...defaults(controls), tokens: null, ...params };
  const { edge, gap } = gapAxis(values.tokens);
  const gaps = linspace(-edge, edge, 251).map(gap);
  const moves = linspace(-1.2, 1.2, 241);
  const { tokens } = values;
  const gradient = gradientOf(values);
  return {
    gaps,
    moves,
    positive: states(gaps, moves, 1, values),
    negative: states(gaps, moves, -1, values),
    thresholds: [threshold(1, values), threshold(-1, values)],
    tokens: tokens && tokens.gap.map((one, i) => gradient(one, tokens.moved[i], tokens.advantages[i])),
  };
}

// One path for each state: the runs of equal cells, row by row.
function region(grid, columns, frame, fill) {
  const [wide, high] = [frame.width / columns, (frame.height * columns) / grid.length];
  const parts = ["", "", ""];
  for (let from = 0; from < grid.length; ) {
    const row = Math.floor(from / columns);
    let to = from + 1;
    while (to < (row + 1) * columns && grid[to] === grid[from]) to += 1;
    const [x, y] = [(from - row * columns) * wide, frame.height - (row + 1) * high];
    parts[grid[from]] += `M${x.toFixed(2)} ${y.toFixed(2)}h${((to - from) * wide).toFixed(2)}v${high.toFixed(2)}H${x.toFixed(2)}z`;
    from = to;
  }
  return parts.map((d, state) => `<path d="${d}" fill="${fill[state]}" shape-rendering="crispEdges"/>`).join("");
}

function dots(found, tokens, sign, frame, axis) {
  if (!tokens) return { svg: "", note: "" };
  const colour = sign > 0 ? "var(--blue)" : "var(--orange)";
  const spread = uniforms(0, tokens.gap.length);
  const chosen = tokens.gap.map((_, i) => i).filter((i) => Math.sign(tokens.advantages[i]) === sign);
  const dead = chosen.filter((i) => found.tokens[i] === 0);
  const marks = chosen.map((i) => {
    const [x, y] = [frame.x(axis.place(tokens.gap[i])), frame.y(tokens.moved[i] + 0.18 * (spread[i] - 0.5))];
    const ink = found.tokens[i] === 0 ? `fill="none" stroke="${colour}" stroke-width="1.4"` : `fill="${colour}" opacity="0.65"`;
    return `<circle cx="${x.toFixed(1)}" cy="${y.toFixed(1)}" r="3" ${ink}/>`;
  });
  const share = chosen.length ? Math.round((100 * dead.length) / chosen.length) : 0;
  return { svg: marks.join(""), note: `: ${share} % of ${chosen.length} tokens dead` };
}

function draw({ values, found, width, id }) {
  const tokens = found.tokens && values.tokens;
  const axis = gapAxis(tokens);
  const wide = width >= 600;
  const part = wide ? width / 2 : width;
  const far = [-10, -5, -2, -1, 0, 1, 2, 5, 10].filter((gap) => Math.abs(gap) < 1.1 * axis.furthest);
  const panel = (sign, i) => {
    const place = {
      left: 38 + (wide ? i * part : 0), top: 42 + (wide ? 0 : i * 340), width: part - 50, height: 240,
      x: [-axis.edge, axis.edge], y: [-1.2, 1.2], yLabel: "log π_θ/π_old (0: before any update)",
      xLabel: "log π_old/π_T (left: the teacher likes it more)",
      xTicks: axis.far ? far.map((gap) => [axis.place(gap), short(gap)]) : undefined,
    };
    const frame = axes(place);
    const some = dots(found, tokens, sign, frame, axis);
    const title = `A ${sign > 0 ? "&gt;" : "&lt;"} 0${some.note}`;
    const cross =
      line(0, frame.y(0), frame.width, frame.y(0), 'stroke="var(--grey)"') +
      line(frame.x(0), 0, frame.x(0), frame.height, 'stroke="var(--grey)"');
    const grid = sign > 0 ? found.positive : found.negative;
    const cells = region(grid, found.gaps.length, frame, [`url(#${id})`, FILL[BOUNDED], FILL[ALIVE]]);
    return words(place.left, place.top - 27, title, 'font-weight="600"') + frame.draw(cells + cross + some.svg);
  };
  const [above, below] = found.thresholds;
  const where = (ratio, name) => (ratio === null ? "nowhere" : `where ${name} is above ${ratio.toFixed(2)}`);
  const dot = (ink) => `<circle cx="13" cy="7" r="4" ${ink}/>`;
  return {
    size: [width, wide ? 330 : 670],
    svg: hatch(id) + panel(1, 0) + panel(-1, 1),
    sentence: `Before any update a token with A > 0 is dead ${where(above, "π_old/π_T")}, and one with A < 0 ${where(below, "π_T/π_old")}.`,
    legend: [
      boxKey(`fill="${FILL[ALIVE]}"`, "gradient alive"),
      boxKey(`fill="${FILL[BOUNDED]}"`, "alive, but bounded: only the α part is left"),
      boxKey(`fill="url(#${id})"`, "dead: gradient 0"),
      ...(tokens ? [key(dot('fill="var(--grey)"'), "token"), key(dot('fill="none" stroke="var(--grey)" stroke-width="1.4"'), "token, dead")] : []),
    ],
  };
}

const explorable = view({ controls, numbers, draw });
export default explorable;
