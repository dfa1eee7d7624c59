// A table of runs: a click on a heading sorts, a click on a row selects.

const QUIET = "data-lm-suppress-shortcuts"; // JupyterLab leaves the keys of such elements alone
const HEADS = [["name", "run"], ["method", "method"], ["state", "state"], ["step", "step"],
  ["accuracy", "accuracy"], ["reward", "reward"], ["settings", "settings that differ"]];

const said = (value) => (value === null ? "" : String(Number(value.toPrecision(3))).replace("-", "−"));

function make(tag, text = "", more = {}) {
  const node = document.createElement(tag);
  node.textContent = text;
  for (const [name, value] of Object.entries(more)) node.setAttribute(name, value);
  return node;
}

// The reward over the steps; all rows share one scale.
function spark(row, [low, high]) {
  const { rewards } = row;
  if (rewards.length < 2) return "";
  const at = (value, i) => `${(100 * i) / (rewards.length - 1)} ${22 - (20 * (value - low)) / (high - low || 1)}`;
  const words = `reward from ${said(rewards[0])} to ${said(rewards[rewards.length - 1])}`;
  return `<svg role="img" aria-label="${words}" viewBox="0 0 100 24" preserveAspectRatio="none"><title>${words}</title>
    <polyline points="${rewards.map(at).join(" ")}"/></svg>`;
}

function compare(one, other, { key, down }) {
  const [a, b] = [one[key] ?? -Infinity, other[key] ?? -Infinity];
  const order = typeof a === "string" ? a.localeCompare(b, undefined, { numeric: true }) : a - b;
  return down ? -order : order;
}

function render({ model, el }) {
  const root = make("div", "", { class: "rlkd-runs" });
  const table = make("table");
  const [head, body] = [make("thead"), make("tbody")];
  const empty = make("p", "No runs here yet.");
  table.append(head, body);
  root.append(table, empty);
  el.replaceChildren(root);
  let order = null;

  const choose = (names) => {
    model.set("selected", names);
    model.save_changes();
  };
  const toggle = (name) => {
    const chosen = model.get("selected");
    choose(chosen.includes(name) ? chosen.filter((one) => one !== name) : [...chosen, name]);
  };

  function heading([key, words]) {
    const cell = make("th", "", { scope: "col" });
    const button = make("button", words, { [QUIET]: "true", "data-key": `sort ${key}`, title: "sort" });
    if (order?.key === key) cell.setAttribute("aria-sort", order.down ? "descending" : "ascending");
    button.addEventListener("click", () => {
      order = { key, down: order?.key === key ? !order.down : ["accuracy", "reward", "step"].includes(key) };
      draw();
    });
    cell.append(button);
    return cell;
  }

  function line(row, scale) {
    const node = make("tr");
    const box = make("input", "", { type: "checkbox", [QUIET]: "true", "data-key": `run ${row.name}` });
    box.setAttribute("aria-label", `select ${row.name}`);
    const settings = make("td", row.settings, { class: "settings" });
    if (row.problem) settings.append(make("div", row.problem, { class: "problem" }));
    const name = make("th", row.name, { scope: "row" });
    if (row.marked) name.prepend(make("span", "★ ", { role: "img", "aria-label": "marked" }));
    const curve = make("td", "", { class: "spark" });
    curve.innerHTML = spark(row, scale); // numbers alone
    const step = row.steps ? `${row.step} of ${row.steps}` : "";
    const number = (key) => make("td", said(row[key]), { class: "number", "data-name": key });
    const select = make("td", "", { class: "select" });
    select.append(box);
    node.append(select, name, make("td", row.method), make("td", row.state, { "data-state": row.state }));
    node.append(make("td", step, { class: "number" }), number("accuracy"), number("reward"), settings, curve);
    node.addEventListener("click", (event) => event.target !== box && toggle(row.name));
    box.addEventListener("change", () => toggle(row.name));
    return node;
  }

  function mark() {
    const chosen = new Set(model.get("selected"));
    [...body.children].forEach((node) => {
      const box = node.querySelector("input");
      box.checked = chosen.has(box.dataset.key.slice(4));
      node.classList.toggle("chosen", box.checked);
    });
  }

  function draw() {
    const rows = [...model.get("rows")];
    if (order) rows.sort((one, other) => compare(one, other, order));
    let [low, high] = [Infinity, -Infinity];
    rows.forEach((row) => row.rewards.forEach((one) => ([low, high] = [Math.min(low, one), Math.max(high, one)])));
    const key = root.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
    const top = make("tr");
    const all = make("td", "", { class: "select" });
    top.append(all, ...HEADS.map(heading), make("th", "reward over the steps", { scope: "col" }));
    head.replaceChildren(top);
    body.replaceChildren(...rows.map((row) => line(row, [low, high])));
    [table.hidden, empty.hidden] = [!rows.length, rows.length > 0];
    mark();
    if (key) [...root.querySelectorAll("[data-key]")].find((one) => one.dataset.key === key)?.focus();
  }

  model.on("change:rows", draw);
  model.on("change:selected", mark);
  draw();
  return () => {
    model.off("change:rows", draw);
    model.off("change:selected", mark);
  };
}

export default { render };
