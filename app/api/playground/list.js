// The cards of the images on the screen, among thousands: all rows have one height, and padding replaces the others.

import { Card } from "./card.js";

const SPARE_ROWS = 2;

export class CardList {
  #list;
  #items = [];
  #hasAll = false;
  #options;

  // options: open(item), seen(item, isSeen) when a card appears or disappears
  constructor(list, options) {
    this.#list = list;
    this.#options = options;
    addEventListener("scroll", () => this.#render(), { passive: true });
    // Also when what lies above the list changes its height.
    new ResizeObserver(() => this.#render()).observe(document.body);
    addEventListener("resize", () => this.#render());
    addEventListener("beforeprint", () => this.#renderAll(true));
    addEventListener("afterprint", () => this.#renderAll(false));
  }

  get items() {
    return this.#items;
  }

  show(items) {
    this.#items = items;
    this.#render();
  }

  // Scrolls to a card and focuses it.
  reveal(item) {
    const at = this.#items.indexOf(item);
    if (at < 0) return;
    if (!item.card) {
      const { columns, height } = this.#rows();
      scrollTo({ top: scrollY + this.#list.getBoundingClientRect().top + Math.floor(at / columns) * height - innerHeight / 2 });
      this.#render();
    }
    item.card.focus();
  }

  // Printers need all cards, with their pictures.
  async print() {
    this.#renderAll(true);
    await Promise.all([...this.#list.querySelectorAll("img")].map((image) => image.decode().catch(() => null)));
    print();
  }

  #renderAll(hasAll) {
    this.#hasAll = hasAll;
    this.#render();
  }

  #rows() {
    const { gridTemplateColumns, gridAutoRows, rowGap } = getComputedStyle(this.#list);
    const columns = gridTemplateColumns.split(" ").length;
    return { columns, height: parseFloat(gridAutoRows) + parseFloat(rowGap), count: Math.ceil(this.#items.length / columns) };
  }

  #render() {
    const { columns, height, count } = this.#rows();
    const { top } = this.#list.getBoundingClientRect();
    const rowAt = (y) => Math.min(count, Math.max(0, Math.floor((y - top) / height)));
    const first = this.#hasAll ? 0 : Math.max(0, rowAt(0) - SPARE_ROWS);
    const last = this.#hasAll ? count : Math.min(count, rowAt(innerHeight) + 1 + SPARE_ROWS);
    this.#list.style.paddingTop = `${first * height}px`;
    this.#list.style.paddingBottom = `${(count - last) * height}px`;
    this.#place(first * columns, last * columns);
  }

  // Cards that stay are not moved, so that they keep the focus.
  #place(first, last) {
    const wanted = this.#items.slice(first, last);
    const kept = new Set(wanted);
    for (const element of [...this.#list.children]) if (!kept.has(element.item)) this.#remove(element);
    wanted.forEach((item, at) => {
      const isNew = !item.card;
      if (isNew) item.card = new Card(item, this.#options.open);
      const { element } = item.card;
      element.setAttribute("aria-setsize", this.#items.length);
      element.setAttribute("aria-posinset", first + at + 1);
      if (this.#list.children[at] !== element) this.#list.insertBefore(element, this.#list.children[at] ?? null);
      if (isNew) this.#options.seen(item, true);
    });
  }

  #remove(element) {
    const { item } = element;
    element.remove();
    item.card = null;
    this.#options.seen(item, false);
  }
}
