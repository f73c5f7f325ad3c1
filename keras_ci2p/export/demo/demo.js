// One page, no server: ONNX Runtime Web runs the model, on one thread, in the browser.

const config = JSON.parse(document.getElementById("config").textContent);
const [height, width] = config.image_size;
const element = (id) => document.getElementById(id);
let session = null;
let ort = null;
let last = null;

// A file beside the page, or a data: URL in it, gzipped.
async function read(source) {
  const answer = await fetch(source);
  if (!answer.ok) throw new Error(`${source} is not there (${answer.status})`);
  if (!source.startsWith("data:application/gzip")) return new Uint8Array(await answer.arrayBuffer());
  const unpacked = answer.body.pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(unpacked).arrayBuffer());
}

async function load() {
  const [code, wasm, model] = await Promise.all([config.runtime.code, config.runtime.wasm, config.model].map(read));
  // Browsers import no modules from file://, but from what the page has made itself.
  ort = await import(URL.createObjectURL(new Blob([code], { type: "text/javascript" })));
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmBinary = wasm;
  session = await ort.InferenceSession.create(model, { executionProviders: ["wasm"] });
}

// Pillow's bicubic resampling, so that a photo gives here what it gives in Python: for each pixel of the result the
// first of the pixels that it is made of, and their weights.
function weights(length, size) {
  const scale = length / size;
  const filterScale = Math.max(scale, 1);
  const support = 2 * filterScale;
  const cubic = (x) => {
    x = Math.abs(x);
    if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
    return x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
  };
  return Array.from({ length: size }, (_, i) => {
    const center = (i + 0.5) * scale;
    const first = Math.max(Math.trunc(center - support + 0.5), 0);
    const end = Math.min(Math.trunc(center + support + 0.5), length);
    const values = [];
    for (let x = first; x < end; x++) values.push(cubic((x - center + 0.5) / filterScale));
    const sum = values.reduce((a, b) => a + b, 0);
    return [first, values.map((value) => value / sum)];
  });
}

// Resamples bytes, RGB, row by row: each of `lines` rows from `length` to `size` pixels, or each of as many columns.
function resample(pixels, lines, length, size, alongRows) {
  const result = new Uint8ClampedArray(lines * size * 3);
  weights(length, size).forEach(([first, values], i) => {
    for (let line = 0; line < lines; line++) {
      for (let channel = 0; channel < 3; channel++) {
        let sum = 0;
        for (let k = 0; k < values.length; k++) {
          const place = alongRows ? line * length + first + k : (first + k) * lines + line;
          sum += values[k] * pixels[place * 3 + channel];
        }
        result[(alongRows ? line * size + i : i * lines + line) * 3 + channel] = sum;
      }
    }
  });
  return result;
}

// Python's round: halves to the even number.
function round(value) {
  const below = Math.floor(value);
  if (value - below !== 0.5) return Math.round(value);
  return below % 2 ? below + 1 : below;
}

// The central crop of a photo as `keras_ci2p.data.center_crop` cuts it: bytes, RGB, row by row.
function centerCrop(pixels, photoWidth, photoHeight) {
  const ratio = config.crop.resize_ratio;
  const least = [Math.trunc(width * ratio), Math.trunc(height * ratio)];
  let [newWidth, newHeight] = least;
  if (least[0] * photoHeight >= least[1] * photoWidth) newHeight = Math.trunc((least[0] * photoHeight) / photoWidth);
  else newWidth = Math.trunc((least[1] * photoWidth) / photoHeight);
  [newWidth, newHeight] = [Math.max(newWidth, width), Math.max(newHeight, height)];
  let resized = newWidth === photoWidth ? pixels : resample(pixels, photoHeight, photoWidth, newWidth, true);
  resized = newHeight === photoHeight ? resized : resample(resized, newWidth, photoHeight, newHeight, false);
  const left = round((newWidth - width) / 2);
  const top = round((newHeight - height) / 2);
  const result = new Uint8ClampedArray(width * height * 3);
  for (let y = 0; y < height; y++) {
    const start = ((top + y) * newWidth + left) * 3;
    result.set(resized.subarray(start, start + width * 3), y * width * 3);
  }
  return result;
}

// Upright, without the screen's colours, transparency on white: as `keras_ci2p.data.load_image`.
async function decode(blob) {
  const options = { imageOrientation: "from-image", colorSpaceConversion: "none", premultiplyAlpha: "none" };
  const bitmap = await createImageBitmap(blob, options);
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d");
  context.drawImage(bitmap, 0, 0);
  const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
  const pixels = new Uint8ClampedArray(canvas.width * canvas.height * 3);
  for (let i = 0; i < canvas.width * canvas.height; i++) {
    const alpha = data[4 * i + 3] / 255;
    for (let channel = 0; channel < 3; channel++) {
      pixels[3 * i + channel] = data[4 * i + channel] * alpha + 255 * (1 - alpha);
    }
  }
  return { pixels, width: bitmap.width, height: bitmap.height };
}

function probabilities(outputs) {
  if (config.output !== "logits") return Array.from(outputs);
  const highest = Math.max(...outputs);
  const powers = Array.from(outputs, (value) => Math.exp(value - highest));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((value) => value / sum);
}

// RGB in 0..255, `(height, width, 3)`, to scores by class, attention by token and milliseconds.
async function run(pixels) {
  const images = new ort.Tensor("float32", Float32Array.from(pixels), [1, height, width, 3]);
  const began = performance.now();
  const outputs = await session.run({ images });
  const milliseconds = performance.now() - began;
  const scores = outputs[config.output].data;
  return { scores, probabilities: probabilities(scores), attention: outputs.attention.data, milliseconds };
}

async function classify(blob) {
  const photo = await decode(blob);
  const pixels = centerCrop(photo.pixels, photo.width, photo.height);
  return { pixels, ...(await run(pixels)) };
}

function say(text, isError = false) {
  element("status").textContent = text;
  element("status").classList.toggle("error", isError);
}

// The photo; over it what is looked at less than the average token grows darker.
function draw() {
  const canvas = element("photo");
  [canvas.width, canvas.height] = [width, height];
  const image = new ImageData(width, height);
  for (let i = 0; i < width * height; i++) {
    image.data.set([last.pixels[3 * i], last.pixels[3 * i + 1], last.pixels[3 * i + 2], 255], 4 * i);
  }
  const context = canvas.getContext("2d");
  context.putImageData(image, 0, 0);
  if (!element("attention").checked) return;
  const [rows, columns] = config.grid_size;
  const highest = Math.max(...last.attention);
  const shade = new ImageData(columns, rows);
  for (let i = 0; i < rows * columns; i++) shade.data[4 * i + 3] = 200 * (1 - last.attention[i] / highest);
  const small = new OffscreenCanvas(columns, rows);
  small.getContext("2d").putImageData(shade, 0, 0);
  context.imageSmoothingQuality = "high";
  context.drawImage(small, 0, 0, width, height);
}

function show(name) {
  const order = last.probabilities.map((_, i) => i).sort((a, b) => last.probabilities[b] - last.probabilities[a]);
  const percent = (i) => `${(100 * last.probabilities[i]).toFixed(1)} %`;
  element("classes").replaceChildren(
    ...order.slice(0, 5).map((i) => {
      const item = document.createElement("li");
      const line = item.appendChild(document.createElement("div"));
      line.className = "name";
      line.append(config.class_names[i], Object.assign(document.createElement("span"), { textContent: percent(i) }));
      const bar = item.appendChild(document.createElement("div"));
      bar.className = "bar";
      bar.setAttribute("aria-hidden", "true");
      bar.appendChild(document.createElement("div")).style.width = percent(i).replace(" ", "");
      return item;
    }),
  );
  element("result").hidden = false;
  draw();
  const took = `${last.milliseconds.toFixed(0)} ms`;
  say(`${name}: ${config.class_names[order[0]]}, ${percent(order[0])}, in ${took}.`);
}

async function open(blob, name) {
  if (!session) return;
  say(`Looking at ${name} …`);
  try {
    last = await classify(blob);
  } catch (error) {
    console.error(error);
    say(`${name} cannot be read as a photo: choose a JPEG, PNG, WebP or another format that this browser shows.`, true);
    return;
  }
  show(name);
}

element("about").textContent = config.about;
element("attention").addEventListener("change", draw);
const ready = load();
for (const { source, name } of config.samples) {
  const button = element("samples").appendChild(document.createElement("button"));
  button.type = "button";
  button.appendChild(Object.assign(document.createElement("img"), { src: source, alt: name }));
  button.addEventListener("click", async () => open(new Blob([await read(source)]), name));
}
const take = (files) => files.length && open(files[0], files[0].name);
element("file").addEventListener("change", (event) => take(event.target.files));
const drop = element("drop");
for (const [event, over] of [["dragenter", true], ["dragover", true], ["dragleave", false], ["drop", false]]) {
  drop.addEventListener(event, () => drop.classList.toggle("over", over));
}
// Beside the frame too: else the browser would leave the page for the photo.
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  take(event.dataTransfer.files);
});

// Until then a click would find no model.
const inputs = [element("file"), ...element("samples").children];
for (const input of inputs) input.disabled = true;
try {
  await ready;
  for (const input of inputs) input.disabled = false;
  say("Ready.");
} catch (error) {
  console.error(error);
  const local = location.protocol === "file:" && !config.is_one_file;
  say(
    local
      ? "A browser reads no model from a file: run `python -m http.server` in this folder and open what it says."
      : `The model cannot be loaded: ${error.message}`,
    true,
  );
}
// For those who want to call it: `demo.run`, `demo.classify`, `demo.centerCrop`.
window.demo = { run, classify, centerCrop, config };
