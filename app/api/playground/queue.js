// Sends files in small batches, in order. Pauses while the service requires a key.

import { Cancelled, NeedsKey, classifyFiles } from "./service.js";

const BATCH_BYTES = 4 * 1024 * 1024;

export class Queue {
  #waiting = [];
  #running = 0;
  #isHeld = false;
  #cancelling = new AbortController();
  #options;

  // options: batchFiles, atOnce, withEvidence, answered(item, outcome), needsKey(reason)
  constructor(options) {
    this.#options = options;
  }

  add(items, isUrgent = false) {
    if (isUrgent) this.#waiting.unshift(...items);
    else this.#waiting.push(...items);
    setTimeout(() => this.#startNext()); // after the task that draws the cards
  }

  // Removes an item that is not sent yet, and returns whether there was one.
  drop(item) {
    const at = this.#waiting.indexOf(item);
    if (at >= 0) this.#waiting.splice(at, 1);
    return at >= 0;
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
    while (!this.#isHeld && this.#running < this.#options.atOnce && this.#waiting.length) this.#take(this.#nextBatch());
  }

  #nextBatch() {
    const batch = [];
    let bytes = 0;
    while (this.#waiting.length && batch.length < this.#options.batchFiles) {
      bytes += this.#waiting[0].file.size;
      if (batch.length && bytes > BATCH_BYTES) break;
      batch.push(this.#waiting.shift());
    }
    return batch;
  }

  async #take(items) {
    this.#running++;
    const { signal } = this.#cancelling;
    try {
      await this.#classify(items, signal);
    } finally {
      this.#running--;
      this.#startNext();
    }
  }

  async #classify(items, signal) {
    try {
      const outcomes = await classifyFiles(items.map(({ file }) => file), this.#options.withEvidence, signal);
      items.forEach((item, at) => this.#answer(item, outcomes[at], signal));
    } catch (error) {
      await this.#handle(error, items, signal);
    }
  }

  async #handle(error, items, signal) {
    if (error instanceof Cancelled || signal.aborted) return;
    if (error instanceof NeedsKey) {
      this.#waiting.unshift(...items);
      this.#isHeld = true;
      this.#options.needsKey(error.message);
    } else if (items.length > 1 && !error.isRetryable) {
      // One file may be the reason, such as one that is too large.
      const half = Math.ceil(items.length / 2);
      await this.#classify(items.slice(0, half), signal);
      await this.#classify(items.slice(half), signal);
    } else {
      items.forEach((item) => this.#answer(item, { error: { code: error.code ?? "unreachable", message: error.message } }, signal));
    }
  }

  #answer(item, outcome, signal) {
    if (!signal.aborted) this.#options.answered(item, outcome);
  }
}
