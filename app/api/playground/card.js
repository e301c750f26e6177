// The card of one image: its label, probabilities and heatmap.

const WHAT_TO_DO = {
  corrupt_image: "Check that it opens in an image viewer. If not, copy it from its source again.",
  image_too_large: "Reduce the image, or raise the service's limits.",
  payload_too_large: "Reduce the image, or raise the service's limits.",
  classify_timeout: "Save it again with an image editor: the file takes too long to decode.",
  unreachable: "Check that the service is running, then choose the image again.",
  overloaded: "The service is overloaded. Choose the image again later.",
};
const LEAST_HEAT = 24;
// Longest side of a heatmap in pixels. Cards are small; a photograph's full size would take 100 times the memory.
const HEATMAP_SIDE = 320;

export class Card {
  constructor(item, chosen) {
    this.item = item;
    this.element = document.getElementById("card").content.firstElementChild.cloneNode(true);
    this.#part(".name").textContent = item.name;
    this.#part(".name").title = item.name;
    const picture = this.#part(".picture");
    picture.setAttribute("aria-label", `Choose ${item.name}`);
    this.element.addEventListener("click", () => chosen(this));
    const image = this.#part("img");
    image.addEventListener("error", () => {
      image.hidden = true;
      this.#part(".no-picture").hidden = false;
    });
    this.url = URL.createObjectURL(item.file);
    image.src = this.url;
  }

  choose(isChosen) {
    this.element.classList.toggle("chosen", isChosen);
    this.#part(".picture").setAttribute("aria-pressed", String(isChosen));
  }

  remove() {
    URL.revokeObjectURL(this.url);
    this.element.remove();
  }

  show(outcome) {
    this.element.classList.toggle("failed", Boolean(outcome.error));
    this.element.classList.toggle("abstained", Boolean(outcome.abstained));
    this.#part(".verdict").textContent = verdictOf(outcome);
    this.#part(".why").textContent = reasonOf(outcome);
    this.#part(".classes").replaceChildren(...barsOf(outcome));
  }

  async showHeatmap(isWanted) {
    const canvas = this.#part("canvas");
    const evidence = this.item.outcome?.evidence;
    this.isHeatmapWanted = isWanted;
    if (isWanted && evidence) await drawHeatmap(canvas, evidence, this.#part("img"));
    canvas.hidden = !(this.isHeatmapWanted && evidence);
    if (canvas.hidden) canvas.width = canvas.height = 0;
  }

  #part(selector) {
    return this.element.querySelector(selector);
  }
}

export function verdictOf(outcome) {
  if (outcome.error) return outcome.error.code;
  if (outcome.abstained) return "abstained";
  return `${outcome.label} ${percent(outcome.confidence)}`;
}

function reasonOf(outcome) {
  if (outcome.error) return `${outcome.error.message} ${WHAT_TO_DO[outcome.error.code] ?? ""}`.trim();
  if (outcome.abstained) {
    return `The image differs from the training images (${outcome.reason}). Nearest class: ${outcome.nearest_label}. A person should review it.`;
  }
  return "";
}

function barsOf(outcome) {
  const top = outcome.label ?? outcome.nearest_label;
  return Object.entries(outcome.probabilities ?? {}).map(([name, probability]) => {
    const row = document.createElement("li");
    const meter = document.createElement("meter");
    meter.value = probability;
    meter.setAttribute("aria-label", `${name} ${percent(probability)}`);
    row.append(text(name), meter, text(percent(probability)));
    row.classList.toggle("top", name === top);
    return row;
  });
}

function text(content) {
  const span = document.createElement("span");
  span.textContent = content;
  return span;
}

export function percent(share) {
  return `${(100 * share).toFixed(1)} %`;
}

// The heatmap covers the whole upright image. The box is in pixels of that image.
async function drawHeatmap(canvas, evidence, image) {
  const heat = new Image();
  heat.src = `data:image/png;base64,${evidence.heatmap_png}`;
  await Promise.all([heat.decode(), image.decode().catch(() => null)]);
  // An image that the browser cannot decode, such as a TIFF, has a natural size of 0.
  const [width, height] = [image.naturalWidth || heat.naturalWidth, image.naturalHeight || heat.naturalHeight];
  const scale = Math.min(1, HEATMAP_SIDE / Math.max(width, height));
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  const brush = canvas.getContext("2d");
  brush.drawImage(heat, 0, 0, canvas.width, canvas.height);
  const pixels = brush.getImageData(0, 0, canvas.width, canvas.height);
  for (let at = 0; at < pixels.data.length; at += 4) {
    const warmth = pixels.data[at];
    pixels.data.set([255, Math.max(0, 200 - warmth), 0, warmth < LEAST_HEAT ? 0 : 0.65 * warmth], at);
  }
  brush.putImageData(pixels, 0, 0);
  if (!evidence.box || !image.naturalWidth) return;
  const [x0, y0, x1, y1] = evidence.box.map((side) => side * scale);
  const line = Math.max(2, Math.min(canvas.width, canvas.height) / 60);
  brush.lineWidth = line;
  brush.strokeStyle = "#00e5ff";
  brush.strokeRect(x0 + line / 2, y0 + line / 2, x1 - x0 - line, y1 - y0 - line);
}
