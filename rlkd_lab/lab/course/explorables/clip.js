// The clipped surrogate and its gradient against the ratio ρ = π_θ/π_old.
import { axes, boxKey, defaults, hatch, line, lineKey, linspace, path, view } from "./plot.js";

const controls = [
  { name: "rho", label: "ρ of the token", value: 0.5, min: 0.05, max: 3.5, step: 0.05 },
  { name: "sign", label: "advantage A", value: 1, options: [-1, 1], show: (sign) => (sign > 0 ? "+1" : "−1") },
  { name: "clip_low", label: "ε_low", value: 0.2, min: 0, max: 0.9, step: 0.05 },
  { name: "clip_high", label: "ε_high", value: 0.2, min: 0, max: 1, step: 0.05 },
  { name: "ratio_cap", label: "cap at A < 0", value: null, options: [null, 1.5, 3] },
];

function surrogate(ratio, advantage, { clip_low, clip_high, ratio_cap }) {
  const capped = advantage < 0 && ratio_cap !== null && ratio > ratio_cap;
  if (capped) return { value: ratio_cap * advantage, gradient: 0 };
  const clipped = Math.min(Math.max(ratio, 1 - clip_low), 1 + clip_high);
  const dead = advantage > 0 ? ratio > 1 + clip_high : ratio < 1 - clip_low;
  const value = Math.min(ratio * advantage, clipped * advantage);
  return { value, gradient: dead ? 0 : ratio * advantage };
}

export function numbers(params = {}) {
  const values = { ...defaults(controls), ...params };
  const at = linspace(0.02, Math.max(values.ratio_cap ? 4 : 2.5, 1.1 * values.rho), 1500);
  const along = at.map((ratio) => surrogate(ratio, values.sign, values));
  const here = surrogate(values.rho, values.sign, values);
  return {
    at,
    value: along.map((one) => one.value),
    gradient: along.map((one) => one.gradient),
    here: here.value,
    push: here.gradient,
  };
}

function deadParts({ at, gradient }, frame, fill) {
  const parts = [];
  for (let from = 0, i = 0; i <= at.length; i += 1) {
    if (i < at.length && gradient[i] === 0) continue;
    if (i > from) {
      const [left, right] = [frame.x(at[from]), frame.x(at[i - 1])];
      parts.push(`<rect x="${left}" width="${right - left}" height="${frame.height}" fill="${fill}"/>`);
    }
    from = i + 1;
  }
  return parts.join("");
}

function draw({ values, found, width, id }) {
  const { rho, sign, clip_low, clip_high } = values;
  const colour = sign > 0 ? "var(--blue)" : "var(--orange)";
  const x = [0, found.at.at(-1)];
  const frame = (top, height, ys, labels) => {
    const [low, high] = [Math.min(0, ...ys), Math.max(0, ...ys)];
    const room = 0.1 * (high - low);
    return axes({ left: 40, top, width: width - 50, height, x, y: [low - room, high + room], ...labels });
  };
  const curve = (axis, ys, point, more) => {
    const edges = [1 - clip_low, 1 + clip_high].map((edge) =>
      line(axis.x(edge), 0, axis.x(edge), axis.height, 'stroke="var(--grey)" stroke-dasharray="2 3"'),
    );
    const dot = `<circle cx="${axis.x(rho)}" cy="${axis.y(point)}" r="6" fill="currentColor"/>`;
    const ink = `stroke="${colour}" stroke-width="2.5"`;
    return axis.draw(
      deadParts(found, axis, `url(#${id})`) + edges.join("") + more +
        path(found.at.map(axis.x), ys.map(axis.y), ink) + dot,
    );
  };
  const unclipped = found.at.map((ratio) => sign * ratio);
  const top = frame(24, 190, [...found.value, ...unclipped], { yLabel: "objective", xLabel: "" });
  const bottom = frame(270, 140, found.gradient, {
    yLabel: "gradient at log π_θ",
    xLabel: "ρ = π_θ / π_old",
  });
  const free = path(found.at.map(top.x), unclipped.map(top.y), 'stroke="var(--grey)" stroke-dasharray="6 4"');
  const state = found.push === 0 ? "the token is dead" : `the gradient ${found.push > 0 ? "raises" : "lowers"} π_θ`;
  const signed = (value) => (value > 0 ? "+" : value < 0 ? "−" : "") + Math.abs(value).toFixed(2);
  return {
    size: [width, 455],
    svg: hatch(id) + curve(top, found.value, found.here, free) + curve(bottom, found.gradient, found.push, ""),
    sentence: `At A = ${sign > 0 ? "+1" : "−1"} and ρ = ${rho.toFixed(2)} the objective is ${signed(found.here)} and the gradient ${signed(found.push)}: ${state}.`,
    legend: [
      lineKey(`stroke="${colour}" stroke-width="2.5"`, "clipped surrogate"),
      lineKey('stroke="var(--grey)" stroke-dasharray="6 4"', "ρ·A, unclipped"),
      boxKey(`fill="url(#${id})"`, "the gradient is exactly 0"),
    ],
  };
}

const explorable = view({ controls, numbers, draw });
export default explorable;
