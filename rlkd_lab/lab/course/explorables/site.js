// Opens every <div class="explorable" data-explorable="NAME"> of a page.
import clip from "./clip.js";
import estimators from "./estimators.js";
import humps from "./humps.js";
import trustRegion from "./trust_region.js";

const views = { clip, estimators, humps, trust_region: trustRegion };
for (const el of document.querySelectorAll(".explorable[data-explorable]")) {
  views[el.dataset.explorable].mount(el);
}
