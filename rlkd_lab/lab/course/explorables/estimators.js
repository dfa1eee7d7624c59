// k1, k2 and k3 as losses: where their mean gradient moves a student over three tokens.
import { arrow, axes, defaults, key, lineKey, path, uniforms, view, words } from "./plot.js";

const STUDENT = [0.35, 0.45, 0.2];
const TEACHER = [0.02, 0.38, 0.6];
const CORNERS = [[0, 0], [1, 0], [0.5, Math.sqrt(3) / 2]];
const COLOURS = { reverse: "var(--green)", forward: "var(--purple)" };
const controls = [
  { name: "n", label: "samples n", value: 20, options: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000] },
  { name: "seed", label: "draw", value: 0, min: 0, max: 20, step: 1 },
];

// what the loss of a sampled token is multiplied with: its gradient is this factor times ∇ log π_θ
const FACTOR = {
  k1: () => 1,
  k2: (p, q) => Math.log(p) - Math.log(q),
  k3: (p, q) => 1 - q / p,
};

const dot = (a, b) => a.reduce((sum, one, i) => sum + one * b[i], 0);
const point = (p) => [0, 1].map((axis) => dot(p, CORNERS.map((corner) => corner[axis])));

function exactGradient(kind, p, q) {
  if (kind === "forward") return p.map((one, i) => one - q[i]);
  const ratio = p.map((one, i) => Math.log(one) - Math.log(q[i]));
  return p.map((one, i) => one * (ratio[i] - dot(p, ratio)));
}

const tokenGradient = (name, token, p, q) =>
  p.map((one, i) => FACTOR[name](p[token], q[token]) * ((i === token ? 1 : 0) - one));

// where a small step against a gradient at the logits moves the student on the simplex
const move = (gradient, p) => point(p.map((one, i) => -(one * gradient[i] - one * dot(p, gradient))));

function sample(seed, n, p) {
  return uniforms(seed, n).map((u) => (u < p[0] ? 0 : u < p[0] + p[1] ? 1 : 2));
}

export function numbers(params = {}) {
  const { n, seed, student, teacher } = { student: STUDENT, teacher: TEACHER, ...defaults(controls), ...params };
  const drawn = sample(seed, n, student);
  const means = (name) => {
    const steps = [0, 1, 2].map((token) => move(tokenGradient(name, token, student, teacher), student));
    let [x, y] = [0, 0];
    return drawn.map((token, i) => {
      x += steps[token][0];
      y += steps[token][1];
      return [x / (i + 1), y / (i + 1)];
    });
  };
  const exact = (kind) => move(exactGradient(kind, student, teacher), student);
  return {
    student: point(student),
    teacher: point(teacher),
    reverse: exact("reverse"),
    forward: exact("forward"),
    k1: means("k1"),
    k2: means("k2"),
    k3: means("k3"),
  };
}

function triangle(found, name, frame, label) {
  const at = ([x, y]) => [frame.x(x), frame.y(y)];
  const scale = 0.42 / Math.max(Math.hypot(...found.reverse), Math.hypot(...found.forward));
  const end = ([x, y]) => at([found.student[0] + scale * x, found.student[1] + scale * y]);
  const here = at(found.student);
  const there = at(found.teacher);
  const edge = [...CORNERS, CORNERS[0]].map(at);
  const way = [here, ...found[name].map(end)];
  const mean = found[name].at(-1);
  const names = CORNERS.map((corner, i) =>
    words(at(corner)[0], at(corner)[1] + (i < 2 ? 16 : -7), `token ${i}`, 'text-anchor="middle" opacity="0.75"'),
  );
  return frame.draw(
    [
      path(edge.map((one) => one[0]), edge.map((one) => one[1]), 'stroke="var(--grey)"'),
      ...names,
      path(way.map((one) => one[0]), way.map((one) => one[1]), 'stroke="var(--grey)" stroke-width="0.8"'),
      ...["reverse", "forward"].map((kind) =>
        arrow(here, end(found[kind]), 6, `color="${COLOURS[kind]}" opacity="0.6"`),
      ),
      scale * Math.hypot(...mean) > 0.02 ? arrow(here, end(mean), 2, "") : "",
      `<circle cx="${here[0]}" cy="${here[1]}" r="5.5" fill="var(--blue)"/>`,
      `<rect x="${there[0] - 5}" y="${there[1] - 5}" width="10" height="10" fill="var(--orange)"/>`,
      words(frame.width / 2, 15, label, 'text-anchor="middle" font-weight="600"'),
    ].join(""),
  );
}

function draw({ values, found, width }) {
  const wide = width >= 600;
  const side = wide ? width / 3 : Math.min(width, 300);
  const high = side * 0.98;
  const share = (name) => (Math.hypot(...found[name].at(-1)) / Math.hypot(...found.reverse)).toFixed(2);
  const panels = ["k1", "k2", "k3"].map((name, i) => {
    const frame = axes({
      left: wide ? i * side + 2 : (width - side) / 2, top: wide ? 1 : i * (high + 12) + 1, width: side - 6, height: high - 4,
      x: [-0.14, 1.14], y: [-0.16, 1.09], xLabel: "", yLabel: "", xTicks: [], yTicks: [],
    });
    return triangle(found, name, frame, `${name} as a loss`);
  });
  return {
    size: [width, wide ? high : 3 * (high + 12)],
    svg: panels.join(""),
    sentence: `Mean of ${values.n} sample${values.n === 1 ? "" : "s"}: the arrow of k1 is ${share("k1")} times as long as the exact reverse arrow, that of k2 ${share("k2")} times, that of k3 ${share("k3")} times.`,
    legend: [
      lineKey('stroke="currentColor" stroke-width="2"', "mean arrow of the samples"),
      lineKey('stroke="var(--grey)"', "its way there"),
      lineKey('stroke="var(--green)" stroke-width="6" opacity="0.6"', "exact: down the reverse KL(π_θ‖π_T)"),
      lineKey('stroke="var(--purple)" stroke-width="6" opacity="0.6"', "exact: down the forward KL(π_T‖π_θ)"),
      key('<circle cx="13" cy="7" r="5.5" fill="var(--blue)"/>', "student"),
      key('<rect x="8" y="2" width="10" height="10" fill="var(--orange)"/>', "teacher"),
    ],
  };
}

const explorable = view({ controls, numbers, draw });
export default explorable;
