// The nets, run by ONNX Runtime in this browser. `make demo` writes what lies in build/.

import { SIZE } from "./resize.js";

const BUILD = new URL("build/", import.meta.url);

/** Load the runtime and all nets; `doing` receives what is being loaded. */
export async function loadNets(doing) {
  doing("Loading the runtime");
  const ort = await import(new URL("runtime/ort.wasm.min.mjs", BUILD).href);
  ort.env.wasm.numThreads = 1; // several need headers that a plain file server does not send
  ort.env.wasm.wasmPaths = new URL("runtime/", BUILD).href;
  const { classes, nets, examples } = await (await get("demo.json")).json();
  const loaded = [];
  for (const net of nets) {
    doing(`Loading ${net.title}`);
    const bytes = await (await get(net.file)).arrayBuffer();
    loaded.push(new Net(ort, net, classes, await ort.InferenceSession.create(bytes)));
  }
  return { classes, nets: loaded, examples: examples.map((one) => ({ ...one, url: new URL(one.file, BUILD).href })) };
}

async function get(name) {
  const response = await fetch(new URL(name, BUILD));
  if (!response.ok) throw new Error(`${name} cannot be loaded (${response.status} ${response.statusText})`);
  return response;
}

/** A trained net. */
class Net {
  constructor(ort, about, classes, session) {
    Object.assign(this, { ort, about, classes, session });
  }

  /**
   * Return the probability of each class, and for each class its evidence: a map of 8x8 numbers, in rows from the top
   * left. The mean of a class's map is its logit but for a constant, so that the map says where the answer comes from.
   * For nets that end with a global average pooling and one linear layer this is Grad-CAM of the last layer of maps.
   */
  async classify(pixels) {
    const input = new this.ort.Tensor("uint8", pixels, [1, 3, SIZE, SIZE]);
    const { logits, evidence } = await this.session.run({ pixels: input });
    const length = evidence.data.length / this.classes.length;
    return {
      probabilities: softmax(logits.data),
      evidence: this.classes.map((_, i) => evidence.data.slice(i * length, (i + 1) * length)),
    };
  }
}

function softmax(logits) {
  const largest = Math.max(...logits);
  const powers = Array.from(logits, (logit) => Math.exp(logit - largest));
  const sum = powers.reduce((a, b) => a + b);
  return powers.map((power) => power / sum);
}
