// The class activation map over the user's own copy of the image. The image never leaves the browser from here.

import { kept } from "./keep.js";

// Colours of the scale from 0 to its end: the viridis map, which stays in order in grey and for colour-blind eyes,
// and stands out from skin.
const SCALE = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
const LONGEST_SIDE = 1200;
const HEAT_SIDE = 160;

/** Colour of a share (0…1) of the scale; little evidence is transparent, so that the skin below stays visible. */
function colour(share) {
  const t = Math.min(1, Math.max(0, share));
  const place = Math.min(SCALE.length - 2, Math.floor(t * (SCALE.length - 1)));
  const rest = t * (SCALE.length - 1) - place;
  const rgb = SCALE[place].map((value, i) => value + (SCALE[place + 1][i] - value) * rest);
  return [...rgb, 255 * Math.min(1, t * 1.8)];
}

/** Value of the map between its cells; cells are areas, so their values stand at their centres. */
function between(values, x, y) {
  const rows = values.length, columns = values[0].length;
  const column = Math.min(columns - 1, Math.max(0, x * columns - 0.5));
  const row = Math.min(rows - 1, Math.max(0, y * rows - 0.5));
  const left = Math.floor(column), top = Math.floor(row);
  const right = Math.min(columns - 1, left + 1), bottom = Math.min(rows - 1, top + 1);
  const across = column - left, down = row - top;
  return (values[top][left] * (1 - across) + values[top][right] * across) * (1 - down)
    + (values[bottom][left] * (1 - across) + values[bottom][right] * across) * down;
}

function heat(values, limit) {
  const canvas = new OffscreenCanvas(HEAT_SIDE, HEAT_SIDE);
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(HEAT_SIDE, HEAT_SIDE);
  for (let y = 0; y < HEAT_SIDE; y++) {
    for (let x = 0; x < HEAT_SIDE; x++) {
      const value = between(values, (x + 0.5) / HEAT_SIDE, (y + 0.5) / HEAT_SIDE);
      pixels.data.set(colour(value / limit), 4 * (y * HEAT_SIDE + x));
    }
  }
  context.putImageData(pixels, 0, 0);
  return canvas;
}

function drawLegend(canvas) {
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(canvas.width, canvas.height);
  for (let x = 0; x < canvas.width; x++) {
    for (let y = 0; y < canvas.height; y++) {
      pixels.data.set(colour(x / (canvas.width - 1)), 4 * (y * canvas.width + x));
    }
  }
  context.putImageData(pixels, 0, 0);
}

/** Hex SHA-256 of a file, or null where the browser offers it only over https. */
async function sha256(file) {
  if (!window.crypto?.subtle) return null;
  const digest = await crypto.subtle.digest("SHA-256", await file.arrayBuffer());
  return Array.from(new Uint8Array(digest), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Make the overlay section of a result work: the slider, the choice of the same file, or the one kept in this browser. */
export function bind(section) {
  if (!section.hidden) kept(section.dataset.sha256).then((file) => file && show(section, file));
  const status = section.querySelector(".overlay-status");
  section.querySelector(".overlay-file").addEventListener("change", async (event) => {
    const file = event.target.files[0];
    if (!file) return;
    const digest = await sha256(file);
    status.classList.toggle("problem", digest !== null && digest !== section.dataset.sha256);
    if (digest !== null && digest !== section.dataset.sha256) {
      status.textContent = section.dataset.other;
      event.target.value = "";
      return;
    }
    status.textContent = digest === null ? section.dataset.unchecked : "";
    await show(section, file);
  });
}

/** Draw the map over `file`, which must be the analysed image. */
export async function show(section, file) {
  const cam = JSON.parse(section.dataset.cam);
  const map = heat(cam.values, Number(section.dataset.limit));
  const canvas = section.querySelector(".overlay-canvas");
  const slider = section.querySelector(".overlay-opacity");
  let picture = null;
  try {
    picture = await createImageBitmap(file, { imageOrientation: "from-image" });
  } catch {
    section.querySelector(".overlay-status").textContent = section.dataset.unshown;
  }
  const width = picture?.width ?? Number(section.dataset.width);
  const height = picture?.height ?? Number(section.dataset.height);
  const scale = Math.min(1, LONGEST_SIDE / Math.max(width, height));
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);

  const [left, top, right, bottom] = cam.region;
  const draw = () => {
    const context = canvas.getContext("2d");
    context.globalAlpha = 1;
    context.fillStyle = "#d9b8a6";
    context.fillRect(0, 0, canvas.width, canvas.height);
    if (picture) context.drawImage(picture, 0, 0, canvas.width, canvas.height);
    context.globalAlpha = Number(slider.value) / 100;
    context.drawImage(map, left * canvas.width, top * canvas.height,
      (right - left) * canvas.width, (bottom - top) * canvas.height);
  };
  draw();
  slider.oninput = draw;
  drawLegend(section.querySelector(".overlay-legend"));
  canvas.hidden = false;
  section.querySelector(".overlay-controls").hidden = false;
  section.querySelector(".overlay-choose").hidden = true;
}
