// Pictures made 32 pixels wide and high, as `deepres predict` makes them: antialiased bicubic interpolation of the
// whole picture with 8-bit results after each of the two passes, first along the rows, then along the columns. The
// weights are whole numbers of 2^-22, so that every browser and Pillow compute the same bytes.

export const SIZE = 32;
const SCALE = 2 ** 22;
const SHARPNESS = -0.5; // Keys's parameter of the bicubic filter

function bicubic(distance) {
  const x = Math.abs(distance);
  if (x < 1) return ((SHARPNESS + 2) * x - (SHARPNESS + 3)) * x * x + 1;
  if (x < 2) return (((x - 5) * x + 8) * x - 4) * SHARPNESS;
  return 0;
}

/** For each of the 32 new pixels: the first old one that it is made of, and the weights of that and the following. */
export function makeWeights(length) {
  const scale = length / SIZE;
  const stretch = Math.max(scale, 1); // a shrunk picture is averaged over all pixels that fall into one
  const reach = 2 * stretch;
  return Array.from({ length: SIZE }, (_, i) => {
    const center = (i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(center - reach + 0.5));
    const end = Math.min(length, Math.trunc(center + reach + 0.5));
    const values = [];
    for (let x = first; x < end; x++) values.push(bicubic((x - center + 0.5) * (1 / stretch)));
    let sum = 0;
    for (const value of values) sum += value;
    return { first, weights: Float64Array.from(values, (value) => roundAway((value / sum) * SCALE)) };
  });
}

function roundAway(value) {
  return Math.trunc(value < 0 ? value - 0.5 : value + 0.5);
}

function toByte(sum) {
  return Math.max(0, Math.min(255, Math.floor((sum + SCALE / 2) / SCALE)));
}

/** Takes a picture a few rows at a time and gives its 32x32 pixels. */
export class Resizer {
  constructor(width, height) {
    this.width = width;
    this.height = height;
    this.columns = makeWeights(width);
    this.narrow = new Uint8Array(height * SIZE * 3); // (height, 32, 3)
    this.filled = 0;
  }

  /** Add the next rows, RGBA bytes as a canvas gives them. */
  add(rgba) {
    const rows = rgba.length / (4 * this.width);
    for (let y = 0; y < rows; y++) {
      let to = (this.filled + y) * SIZE * 3;
      for (const { first, weights } of this.columns) {
        let red = 0, green = 0, blue = 0;
        let from = 4 * (y * this.width + first);
        for (let i = 0; i < weights.length; i++, from += 4) {
          red += weights[i] * rgba[from];
          green += weights[i] * rgba[from + 1];
          blue += weights[i] * rgba[from + 2];
        }
        this.narrow[to++] = toByte(red);
        this.narrow[to++] = toByte(green);
        this.narrow[to++] = toByte(blue);
      }
    }
    this.filled += rows;
  }

  /** Return the pixels as the nets take them: (3, 32, 32), red, green, blue. */
  finish() {
    const pixels = new Uint8Array(3 * SIZE * SIZE);
    makeWeights(this.height).forEach(({ first, weights }, y) => {
      for (let x = 0; x < SIZE; x++) {
        for (let channel = 0; channel < 3; channel++) {
          let sum = 0;
          for (let i = 0; i < weights.length; i++) {
            sum += weights[i] * this.narrow[((first + i) * SIZE + x) * 3 + channel];
          }
          pixels[(channel * SIZE + y) * SIZE + x] = toByte(sum);
        }
      }
    });
    return pixels;
  }
}
