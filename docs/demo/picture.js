// From an image file to the pixels that the nets take. What cannot be used ends in a PictureError that says why.

import { Resizer } from "./resize.js";

const MAX_PIXELS = 89_478_485; // as `deepres predict`
const STRIP = 2 ** 21; // pixels read at a time: canvases have a largest size, on phones a small one

export class PictureError extends Error {}

/** Return the 32x32 pixels of an image file: uint8 (3, 32, 32), upright, on white where it is transparent. */
export async function readPicture(file) {
  if (file.size === 0) throw new PictureError("it is empty");
  if (await countPixels(file) > MAX_PIXELS) { // found out before they are decoded, which might end the browser
    throw new PictureError(`it has more than ${MAX_PIXELS.toLocaleString("en")} pixels: make it smaller`);
  }
  const picture = await decode(file);
  try {
    const { width, height } = picture;
    const resizer = new Resizer(width, height);
    const rows = Math.max(1, Math.min(height, Math.floor(STRIP / width)));
    const canvas = new OffscreenCanvas(width, rows);
    const context = canvas.getContext("2d", { willReadFrequently: true });
    if (!context) throw new PictureError("it is too large for this browser: make it smaller");
    context.fillStyle = "white";
    for (let y = 0; y < height; y += rows) {
      const count = Math.min(rows, height - y);
      context.fillRect(0, 0, width, count);
      context.drawImage(picture, 0, y, width, count, 0, 0, width, count);
      resizer.add(context.getImageData(0, 0, width, count).data);
    }
    return resizer.finish();
  } finally {
    picture.close();
  }
}

async function countPixels(file) {
  const image = new Image(), address = URL.createObjectURL(file);
  try {
    await new Promise((resolve, reject) => Object.assign(image, { onload: resolve, onerror: reject, src: address }));
    return image.naturalWidth * image.naturalHeight;
  } catch {
    throw notAPicture(file);
  } finally {
    URL.revokeObjectURL(address);
  }
}

async function decode(file) {
  try {
    // The numbers in the file are taken as they are, as Pillow takes them: no color profile is applied.
    return await createImageBitmap(file, {
      imageOrientation: "from-image", colorSpaceConversion: "none", premultiplyAlpha: "none",
    });
  } catch {
    throw notAPicture(file);
  }
}

function notAPicture(file) {
  const kind = file.type && !file.type.startsWith("image/") ? `, but ${file.type}` : "";
  return new PictureError(`it is damaged, or no image that this browser can read${kind}`);
}
