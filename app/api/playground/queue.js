// Classifies a few images at a time, in order. Pauses while the service requires a key.

import { Cancelled, NeedsKey, Refused, classify } from "./service.js";

const AT_ONCE = 4;

export class Queue {
  #waiting = [];
  #running = 0;
  #isHeld = false;
  #cancelling = new AbortController();
  #answered;
  #needsKey;

  constructor(answered, needsKey) {
    this.#answered = answered;
    this.#needsKey = needsKey;
  }

  add(items) {
    this.#waiting.push(...items);
    this.#startNext();
  }

  clear() {
    this.#waiting = [];
    this.#cancelling.abort();
    this.#cancelling = new AbortController();
  }

  release() {
    this.#isHeld = false;
    this.#startNext();
  }

  #startNext() {
    while (!this.#isHeld && this.#running < AT_ONCE && this.#waiting.length) this.#take(this.#waiting.shift());
  }

  async #take(item) {
    this.#running++;
    const { signal } = this.#cancelling;
    try {
      this.#answered(item, await classify(item.file, signal));
    } catch (error) {
      if (error instanceof Cancelled || signal.aborted) return;
      if (error instanceof NeedsKey) {
        this.#waiting.unshift(item);
        this.#isHeld = true;
        this.#needsKey(error.message);
      } else {
        const code = error instanceof Refused ? error.code : "unreadable";
        this.#answered(item, { error: { code, message: error.message } });
      }
    } finally {
      this.#running--;
      this.#startNext();
    }
  }
}
