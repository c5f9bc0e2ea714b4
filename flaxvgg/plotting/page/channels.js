const SILENT = [62, 98, 140];

/** All channels of a feature map; one of them enlarged over the photo. */
class Channels {
  constructor(root, viewer) {
    Object.assign(this, { root, viewer, channel: 0 });
    this.order = element("select", {}, ...[["index", "their number"], ["largest", "largest value"], ["zeros", "fewest zeros"]]
      .map(([key, name]) => new Option(name, key)));
    this.input = element("input", { type: "number", min: 0, value: 0 });
    this.sheet = element("canvas", { role: "img" });
    this.photo = element("img", { alt: "", className: "grey" });
    this.large = element("canvas");
    this.told = element("p", { className: "note", "aria-live": "polite" });
    root.hidden = false;
    root.append(
      element("h3", { className: "heading" }),
      element("div", { className: "controls" },
        element("label", {}, "Channels by", this.order),
        element("label", {}, "Channel", this.input)),
      element("div", { className: "split" },
        element("div", { className: "sheet" }, this.sheet),
        element("div", {}, element("div", { className: "stage one" },
          element("div", { className: "pane" }, this.photo, this.large)), this.told)),
    );
    this.order.addEventListener("change", () => this.draw());
    this.input.addEventListener("input", () => this.choose(Number(this.input.value)));
    this.sheet.addEventListener("click", (event) => {
      const { left, top, width, height } = this.sheet.getBoundingClientRect();
      const column = Math.floor(((event.clientX - left) / width) * this.columns);
      const row = Math.floor(((event.clientY - top) / height) * this.rows);
      const at = this.sorted?.[row * this.columns + column];
      if (at !== undefined) this.choose(at);
    });
  }

  async open(item) {
    const told = item.channels;
    this.root.hidden = !told;
    if (!told) return;
    const steps = await unpack(told.data);
    if (item !== this.viewer.item) return;
    const size = told.h * told.w;
    Object.assign(this, { item, steps, size, ...told });
    this.zeros = Array.from({ length: told.c }, (_, c) =>
      steps.subarray(c * size, (c + 1) * size).reduce((sum, x) => sum + (x === 0), 0));
    const byLargest = [...this.zeros.keys()].sort((a, b) => (told.largest[b] ?? 0) - (told.largest[a] ?? 0) || a - b);
    this.rank = new Map(byLargest.map((c, i) => [c, i + 1]));
    this.input.max = told.c - 1;
    if (this.channel >= told.c) this.channel = 0;
    if (!this.chosen) [this.channel, this.input.value] = [byLargest[0], byLargest[0]];
    const silent = this.zeros.filter((x) => x === size).length;
    const share = this.zeros.reduce((a, b) => a + b) / (told.c * size);
    this.root.querySelector(".heading").textContent =
      `The ${told.c} channels of ${told.name}: ${silent} zero everywhere, ${percent(share)} of all values zero`;
    this.draw();
  }

  choose(channel) {
    if (!(channel >= 0 && channel < this.c)) return;
    this.chosen = true;
    this.channel = channel;
    this.input.value = channel;
    this.draw();
  }

  /** Zero is black, a channel of zeros blue; others are as bright as they are beside their largest. */
  colour(channel, step) {
    if (this.zeros[channel] === this.size) return SILENT;
    return step === 0 ? [0, 0, 0] : this.shades[64 + Math.round((step * 191) / 255)];
  }

  draw() {
    if (!this.item) return;
    this.shades = coloursOf("inferno");
    const { c, h, w, steps, size } = this;
    const value = { index: (x) => x, largest: (x) => this.rank.get(x), zeros: (x) => this.zeros[x] }[this.order.value];
    this.sorted = [...this.zeros.keys()].sort((a, b) => value(a) - value(b) || a - b);
    const narrow = this.sheet.parentNode.clientWidth < 500;
    this.columns = Math.min(c, narrow ? 16 : 32);
    this.rows = Math.ceil(c / this.columns);
    const [height, width] = [h + 1, w + 1];
    this.sheet.width = this.columns * width;
    this.sheet.height = this.rows * height;
    const context = this.sheet.getContext("2d");
    const image = context.createImageData(this.sheet.width, this.sheet.height);
    image.data.fill(128);
    this.sorted.forEach((channel, at) => {
      const [row, column] = [Math.floor(at / this.columns), at % this.columns];
      for (let y = 0; y < h; y++) {
        for (let x = 0; x < w; x++) {
          const place = (row * height + y + 1) * this.sheet.width + column * width + x + 1;
          image.data.set([...this.colour(channel, steps[channel * size + y * w + x]), 255], 4 * place);
        }
      }
    });
    context.putImageData(image, 0, 0);
    const at = this.sorted.indexOf(this.channel);
    context.strokeStyle = "#fff";
    context.lineWidth = 1;
    context.strokeRect((at % this.columns) * width + 0.5, Math.floor(at / this.columns) * height + 0.5, width, height);
    this.sheet.setAttribute("aria-label", `${c} channels of ${this.name}; the field Channel chooses one`);
    this.enlarge();
  }

  enlarge() {
    const { h, w, steps, size, channel, item } = this;
    const [height, width] = item.size;
    this.photo.src = item.pictures[0] ?? "";
    this.large.parentNode.parentNode.style.aspectRatio = `${width} / ${height}`;
    this.large.width = w;
    this.large.height = h;
    const context = this.large.getContext("2d");
    const image = context.createImageData(w, h);
    for (let i = 0; i < size; i++) {
      const step = steps[channel * size + i];
      // The photo is seen where the channel is zero.
      image.data.set([...this.shades[64 + Math.round((step * 191) / 255)], step ? 90 + Math.round((step * 140) / 255) : 0], 4 * i);
    }
    context.putImageData(image, 0, 0);
    this.told.textContent =
      `Channel ${channel}: rank ${this.rank.get(channel)} of ${this.c} by its largest value ` +
      `(${number(this.largest[channel])}); ${percent(this.zeros[channel] / size)} of it is zero.`;
  }
}
