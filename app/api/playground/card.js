// The card of one image: its verdict, the two most probable classes, and its evidence while it is on the screen.

import { clearCanvas, drawEvidence } from "./evidence.js";
import { barOf, kindOf, mark, markTruth, ranked, reasonOf, urlOf, verdictOf, withText } from "./outcome.js";

const SHOWN_CLASSES = 2;
// Longest side of a drawn heatmap in pixels: twice the size of the picture, for dense screens.
const HEATMAP_SIDE = 272;

export class Card {
  constructor(item, open) {
    this.item = item;
    this.element = document.getElementById("card").content.firstElementChild.cloneNode(true);
    this.element.item = item;
    this.#part(".name").title = item.name;
    this.#part(".name").append(...item.name.split(/(?<=\/)(?=[^/]*$)/).map((part) => withText("span", part.replace(/\s/g, " "))));
    const picture = this.#part(".picture");
    picture.setAttribute("aria-label", `Look at ${item.name}`);
    this.element.addEventListener("click", ({ target }) => target.closest("details") || open(item));
    this.#part("details").addEventListener("toggle", () => {
      this.#listRest();
      this.#part(".text").scrollTop = this.#part("details").open ? this.#part(".text").scrollHeight : 0;
    });
    const image = this.#part("img");
    image.addEventListener("error", () => {
      image.hidden = true;
      this.#part(".no-picture").hidden = false;
    });
    image.src = urlOf(item);
    this.show();
  }

  show() {
    const { outcome } = this.item;
    mark(this.element, kindOf(outcome));
    this.#part(".verdict span").textContent = verdictOf(this.item);
    this.#part(".why").textContent = reasonOf(this.item);
    this.#part(".code").textContent = outcome?.error?.code ?? "";
    markTruth(this.#part(".truth"), this.item);
    const classes = ranked(outcome);
    this.#part(".best").replaceChildren(...this.#bars(classes.slice(0, SHOWN_CLASSES)));
    this.#part("details").hidden = classes.length <= SHOWN_CLASSES;
    this.#part("summary").textContent = `${classes.length - SHOWN_CLASSES} more`;
    this.#listRest();
  }

  focus() {
    this.#part(".picture").focus();
    this.element.scrollIntoView({ block: "nearest" });
  }

  async showEvidence(isWanted) {
    const canvas = this.#part("canvas");
    const evidence = this.item.outcome?.evidence;
    this.isEvidenceWanted = isWanted;
    if (isWanted && evidence) await drawEvidence(evidence, this.#part("img"), HEATMAP_SIDE, canvas);
    canvas.hidden = !(this.isEvidenceWanted && evidence);
    if (canvas.hidden) clearCanvas(canvas);
  }

  #listRest() {
    const { open } = this.#part("details");
    this.#part(".rest").replaceChildren(...(open ? this.#bars(ranked(this.item.outcome).slice(SHOWN_CLASSES)) : []));
  }

  #bars(classes) {
    return classes.map((pair) => barOf(pair, this.item.outcome.label ?? this.item.outcome.nearest_label));
  }

  #part(selector) {
    return this.element.querySelector(selector);
  }
}
