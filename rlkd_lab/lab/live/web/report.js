
// The report of a run: curves whose data stand in the page. curve_view.js stands before this.

const bytes = (text) => Uint8Array.from(atob(text), (one) => one.charCodeAt(0));
const floatsIn = (key, one) => (one?.floats === undefined ? one : new Float32Array(bytes(one.floats).buffer));

document.documentElement.classList.add("drawn");
for (const place of document.querySelectorAll(".curves")) {
  const data = JSON.parse(place.querySelector("script").textContent, floatsIn);
  const traits = { data, name: place.dataset.name };
  render({ model: { get: (name) => traits[name], on() {}, off() {} }, el: place.querySelector(".live") });
}
