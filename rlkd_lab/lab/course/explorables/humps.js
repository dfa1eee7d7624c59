// Forward and reverse KL between a teacher with two humps and a student with one, Binomial(2, q).
import { axes, boxKey, defaults, line, lineKey, linspace, path, view } from "./plot.js";

const controls = [
  { name: "q", label: "student's q", value: 0.3, min: 0.01, max: 0.99, step: 0.01 },
  { name: "middle", label: "teacher: valley", value: 0.02, min: 0.01, max: 0.9, step: 0.01 },
  { name: "left", label: "left hump's part", value: 0.5, min: 0.05, max: 0.95, step: 0.05 },
];
const COLOURS = { forward: "var(--purple)", reverse: "var(--green)" };

const student = (q) => [(1 - q) ** 2, 2 * q * (1 - q), q * q];
const entropy = (p, q) => p.reduce((sum, one, i) => sum + one * (Math.log(one) - Math.log(q[i])), 0);
const divergence = (kind, q, teacher) =>
  kind === "forward" ? entropy(teacher, student(q)) : entropy(student(q), teacher);

// every q with the smallest divergence, to 1e-4
function fits(kind, teacher) {
  const q = linspace(0, 1, 10001).slice(1, -1);
  const values = q.map((one) => divergence(kind, one, teacher));
  const smallest = values.reduce((least, one) => Math.min(least, one));
  return q.filter(
    (_, i) => values[i] <= values[i - 1] && values[i] <= values[i + 1] && values[i] < smallest + 1e-6,
  );
}

export function numbers(params = {}) {
  const { q, middle, left } = { ...defaults(controls), ...params };
  const teacher = [(1 - middle) * left, middle, (1 - middle) * (1 - left)];
  const at = linspace(0.002, 0.998, 499);
  const found = { at, teacher, student: student(q) };
  for (const kind of ["forward", "reverse"]) {
    const best = fits(kind, teacher);
    found[kind] = {
      along: at.map((one) => divergence(kind, one, teacher)),
      here: divergence(kind, q, teacher),
      fits: best,
      lowest: best.map((one) => divergence(kind, one, teacher)),
      student: student(best[0]),
    };
  }
  return found;
}

function curves(found, q, frame) {
  const lines = ["forward", "reverse"].map((kind) => {
    const { along, here, fits: best, lowest } = found[kind];
    const marks = best.map((one, i) => {
      const [x, y] = [frame.x(one), Math.min(frame.y(lowest[i]), frame.height - 2)];
      return `<path d="M${x} ${y}l-7 -12h14z" fill="${COLOURS[kind]}"/>`;
    });
    const dot = `<circle cx="${frame.x(q)}" cy="${frame.y(here)}" r="5" fill="currentColor"/>`;
    const ink = `stroke="${COLOURS[kind]}" stroke-width="2.5"`;
    return path(found.at.map(frame.x), along.map(frame.y), ink) + marks.join("") + dot;
  });
  const here = line(frame.x(q), 0, frame.x(q), frame.height, 'stroke="currentColor" stroke-dasharray="2 3"');
  return frame.draw(here + lines.join(""));
}

function bars(found, frame) {
  const shown = [
    [found.teacher, "var(--orange)"],
    [found.forward.student, COLOURS.forward],
    [found.reverse.student, COLOURS.reverse],
    [found.student, "currentColor"],
  ];
  const wide = frame.x(0.18) - frame.x(0);
  const all = shown.flatMap(([heights, colour], series) =>
    heights.map((height, outcome) => {
      const x = frame.x(outcome + 0.2 * (series - 1.5)) - wide / 2;
      return `<rect x="${x}" y="${frame.y(height)}" width="${wide}" height="${frame.height}" fill="${colour}"/>`;
    }),
  );
  return frame.draw(all.join(""));
}

function draw({ values, found, width }) {
  const wide = width >= 600;
  const part = wide ? width * 0.54 : width;
  const left = axes({
    left: 36, top: 24, width: part - 46, height: 250, x: [0, 1], y: [0, 3.2],
    xLabel: "student's q", yLabel: "divergence, nats",
  });
  const right = axes({
    left: (wide ? part : 0) + 36, top: wide ? 24 : 350, width: (wide ? width - part : width) - 46,
    height: wide ? 250 : 190, x: [-0.5, 2.5], y: [0, 1], xLabel: "outcome", yLabel: "probability",
    xTicks: [0, 1, 2].map((outcome) => [outcome, outcome]),
  });
  const best = (kind) => found[kind].fits.map((one) => one.toFixed(3)).join(" or ");
  return {
    size: [width, wide ? 320 : 585],
    svg: curves(found, values.q, left) + bars(found, right),
    sentence: `Forward KL is smallest at q = ${best("forward")}, reverse KL at q = ${best("reverse")}. At q = ${values.q.toFixed(2)} they are ${found.forward.here.toFixed(2)} and ${found.reverse.here.toFixed(2)} nats.`,
    legend: [
      lineKey(`stroke="${COLOURS.forward}" stroke-width="2.5"`, "forward KL(π_T‖π_θ), and its best student"),
      lineKey(`stroke="${COLOURS.reverse}" stroke-width="2.5"`, "reverse KL(π_θ‖π_T), and its best student"),
      boxKey('fill="var(--orange)"', "teacher"),
      boxKey('fill="currentColor"', "student at your q"),
    ],
  };
}

const explorable = view({ controls, numbers, draw });
export default explorable;
