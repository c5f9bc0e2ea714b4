/**
 * Colour a field on a canvas over its photo: `limits` are the values at the ends of the colours,
 * `mask` is outlined in white.
 */
function paint(canvas, field, height, width, limits, ink, mask) {
  if (canvas.width !== width || canvas.height !== height) {
    canvas.width = width;
    canvas.height = height;
  }
  const context = canvas.getContext("2d");
  if (!field || !limits) {
    context.clearRect(0, 0, width, height);
    return;
  }
  const image = context.createImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  const unit = 255.999 / (limits[1] - limits[0]);
  for (let i = 0; i < pixels.length; i++) {
    const step = (field[i] - limits[0]) * unit;
    pixels[i] = ink[step < 0 ? 0 : step > 255 ? 255 : step | 0];
  }
  if (mask) outline(pixels, mask, height, width);
  context.putImageData(image, 0, 0);
}

function outline(pixels, mask, height, width) {
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const i = y * width + x;
      if (!mask[i]) continue;
      const inside =
        (x === 0 || mask[i - 1]) &&
        (x === width - 1 || mask[i + 1]) &&
        (y === 0 || mask[i - width]) &&
        (y === height - 1 || mask[i + width]);
      if (!inside) pixels[i] = 0xffffffff;
    }
  }
}

/** A number in a few characters. */
function number(value) {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  return size >= 1e5 || size < 1e-3 ? value.toExponential(2) : String(Number(value.toPrecision(3)));
}

function percent(value) {
  if (value === null || value === undefined) return "–";
  return value > 0 && value < 0.001 ? "< 0.1 %" : `${(100 * value).toFixed(1)} %`;
}

/** A text of a list, whose longest one is as wide as the list. */
function short(text) {
  return text.length > 36 ? `${text.slice(0, 34)} …` : text;
}

/** An element with its properties and children; texts are texts, whatever is in them. */
function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key.includes("-") || key === "role" || key === "for") made.setAttribute(key, value);
    else made[key] = value;
  }
  made.append(...children);
  return made;
}
