// Colours of values: perceptually even scales that look right to the colour-blind as well. The stops
// are matplotlib's (inferno, viridis, cividis; CC0) and ColorBrewer's (RdBu, PuOr; Apache 2.0),
// without the darkest, which a dark photo would hide.
const SCALES = {
  inferno:
    "000004 0c0826 240c4f 420a68 5d126e 781c6d 932667 ae305c " +
    "c73e4c dd513a ed6925 f8850f fca50a fac62d f2e661 fcffa4",
  viridis:
    "440154 481a6c 472f7d 414487 39568c 31688e 2a788e 23888e " +
    "1f988b 22a884 35b779 54c568 7ad151 a5db36 d2e21b fde725",
  cividis:
    "00224e 002e6c 1e3a6f 35456c 47516c 575d6d 666970 757575 " +
    "848279 948e77 a59c74 b7a96e c8b866 dbc75a eed649 fee838",
  grey: "000000 ffffff",
};
const SIGNED = {
  "blue to red":
    "2166ac 4393c3 92c5de d1e5f0 f7f7f7 fddbc7 f4a582 d6604d b2182b",
  "purple to orange":
    "542788 8073ac b2abd2 d8daeb f7f7f7 fee0b6 fdb863 e08214 b35806",
};

function scalesFor(signed) {
  return signed ? SIGNED : SCALES;
}

/** 256 colours [r, g, b] of a scale. */
function coloursOf(name) {
  const stops = ({ ...SCALES, ...SIGNED })[name].split(" ");
  const channel = (stop, i) => parseInt(stop.slice(2 * i, 2 * i + 2), 16);
  return Array.from({ length: 256 }, (_, step) => {
    const at = (step / 255) * (stops.length - 1);
    const left = Math.min(Math.floor(at), stops.length - 2);
    return [0, 1, 2].map((i) =>
      Math.round(channel(stops[left], i) * (1 - at + left) + channel(stops[left + 1], i) * (at - left)),
    );
  });
}

/** The colours as the four bytes of a pixel; the further from nothing, the less transparent. */
function inks(name, signed, opacity) {
  const bytes = new Uint8ClampedArray(4 * 256);
  coloursOf(name).forEach((colour, step) => {
    const strength = signed ? Math.abs(step - 127.5) / 127.5 : step / 255;
    bytes.set([...colour, Math.round(255 * opacity * strength)], 4 * step);
  });
  return new Uint32Array(bytes.buffer);
}
