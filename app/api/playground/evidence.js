// Draws where the network saw the label: a heatmap over the whole upright image, and a box in its pixels.

const LEAST_HEAT = 24;

// Draws both on one canvas of `side` pixels, or the box on one of its own.
// An image that the browser cannot decode, such as a TIFF, has a natural size of 0, and its box no scale.
export async function drawEvidence(evidence, image, side, heatCanvas, boxCanvas = heatCanvas) {
  const heat = new Image();
  heat.src = `data:image/png;base64,${evidence.heatmap_png}`;
  await Promise.all([heat.decode(), image.decode().catch(() => null)]);
  const [width, height] = [image.naturalWidth || heat.naturalWidth, image.naturalHeight || heat.naturalHeight];
  const scale = side / Math.max(width, height);
  for (const canvas of new Set([heatCanvas, boxCanvas])) {
    canvas.width = Math.max(1, Math.round(width * scale));
    canvas.height = Math.max(1, Math.round(height * scale));
  }
  drawHeat(heatCanvas.getContext("2d"), heat, heatCanvas.width, heatCanvas.height);
  if (evidence.box && image.naturalWidth) drawBox(boxCanvas, evidence.box.map((at) => at * scale));
}

// An empty canvas holds no memory.
export function clearCanvas(...canvases) {
  for (const canvas of canvases) canvas.width = canvas.height = 0;
}

function drawHeat(brush, heat, width, height) {
  // Colours the few pixels of the heatmap, which the canvas then scales smoothly.
  const small = new OffscreenCanvas(heat.naturalWidth, heat.naturalHeight);
  const painter = small.getContext("2d");
  painter.drawImage(heat, 0, 0);
  const pixels = painter.getImageData(0, 0, small.width, small.height);
  for (let at = 0; at < pixels.data.length; at += 4) {
    const warmth = pixels.data[at];
    pixels.data.set([255, Math.max(0, 200 - warmth), 0, warmth < LEAST_HEAT ? 0 : 0.65 * warmth], at);
  }
  painter.putImageData(pixels, 0, 0);
  brush.drawImage(small, 0, 0, width, height);
}

// A dark line below the bright one keeps the box visible on any image.
function drawBox(canvas, [x0, y0, x1, y1]) {
  const brush = canvas.getContext("2d");
  const line = Math.max(2, Math.max(canvas.width, canvas.height) / 250);
  for (const [colour, width] of [["#00222b", 2 * line], ["#00e5ff", line]]) {
    brush.lineWidth = width;
    brush.strokeStyle = colour;
    brush.strokeRect(x0 + line, y0 + line, Math.max(0, x1 - x0 - 2 * line), Math.max(0, y1 - y0 - 2 * line));
  }
}
