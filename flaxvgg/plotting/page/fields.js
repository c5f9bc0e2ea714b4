/** The bytes of a compressed array. */
async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** Maps of one photo, method and layer: `values(k)` are those of the k-th class. */
async function openMaps(told) {
  const steps = await unpack(told.data);
  const size = told.h * told.w;
  return {
    h: told.h,
    w: told.w,
    ranges: told.ranges,
    values(k) {
      const range = told.ranges[k];
      if (!range) return null;
      const unit = (range[1] - range[0]) / 255;
      return Float32Array.from(steps.subarray(k * size, (k + 1) * size), (x) => range[0] + x * unit);
    },
  };
}

/** A map resized to another size, linearly, centres of pixels on centres. */
function resized(values, h, w, height, width) {
  const out = new Float32Array(height * width);
  const axis = (to, from) =>
    Array.from({ length: to }, (_, i) => {
      const at = Math.min(Math.max(((i + 0.5) * from) / to - 0.5, 0), from - 1);
      const low = Math.min(Math.floor(at), Math.max(from - 2, 0));
      return [low, Math.min(low + 1, from - 1), at - low];
    });
  const across = axis(width, w);
  axis(height, h).forEach(([top, bottom, down], y) => {
    for (let x = 0; x < width; x++) {
      const [left, right, part] = across[x];
      const upper = values[top * w + left] * (1 - part) + values[top * w + right] * part;
      const lower = values[bottom * w + left] * (1 - part) + values[bottom * w + right] * part;
      out[y * width + x] = upper * (1 - down) + lower * down;
    }
  });
  return out;
}

/** What is cut off or joined before a map is coloured: values below zero, or signs. */
function cut(value, kind) {
  return kind === "zero" ? Math.max(value, 0) : kind === "signed" ? Math.abs(value) : value;
}

/**
 * The ends [low, high] of the colours for some ranges of values, the high one a share `top` of the
 * highest; null where there is nothing to show.
 */
function ends(ranges, kind, top) {
  const known = ranges.filter(Boolean);
  if (!known.length) return null;
  const low = Math.min(...known.map((range) => range[0]));
  const high = Math.max(...known.map((range) => range[1]));
  if (kind === "signed") {
    const most = Math.max(Math.abs(low), Math.abs(high));
    return most > 0 ? [-top * most, top * most] : null;
  }
  const from = kind === "zero" ? 0 : low;
  return high > from ? [from, from + top * (high - from)] : null;
}

/**
 * Where a field is at least `threshold` of its own maximum, of its magnitude if it is signed: a
 * mask, and the box [left, top, right, bottom] around the largest part, diagonals joined.
 */
function found(field, height, width, threshold, kind) {
  let low = kind === "lowest" ? Infinity : 0;
  let high = kind === "lowest" ? -Infinity : 0;
  for (const value of field) {
    const here = cut(value, kind);
    if (here < low) low = here;
    if (here > high) high = here;
  }
  const mask = new Uint8Array(field.length);
  if (!(high > low)) return { mask, box: null, share: 0 };
  const least = low + threshold * (high - low);
  let count = 0;
  for (let i = 0; i < field.length; i++) {
    if (cut(field[i], kind) >= least) {
      mask[i] = 1;
      count++;
    }
  }
  return { mask, box: largestBox(mask, height, width), share: count / field.length };
}

function largestBox(mask, height, width) {
  const seen = new Uint8Array(mask.length);
  const stack = new Int32Array(mask.length);
  let best = null;
  let most = 0;
  for (let start = 0; start < mask.length; start++) {
    if (!mask[start] || seen[start]) continue;
    let [left, top, right, bottom] = [width, height, 0, 0];
    let [count, size] = [0, 1];
    stack[0] = start;
    seen[start] = 1;
    while (size) {
      const i = stack[--size];
      const [y, x] = [Math.floor(i / width), i % width];
      count++;
      left = Math.min(left, x);
      right = Math.max(right, x + 1);
      top = Math.min(top, y);
      bottom = Math.max(bottom, y + 1);
      for (let v = Math.max(y - 1, 0); v <= Math.min(y + 1, height - 1); v++) {
        for (let u = Math.max(x - 1, 0); u <= Math.min(x + 1, width - 1); u++) {
          const j = v * width + u;
          if (mask[j] && !seen[j]) {
            seen[j] = 1;
            stack[size++] = j;
          }
        }
      }
    }
    if (count > most) [most, best] = [count, [left, top, right, bottom]];
  }
  return best;
}
