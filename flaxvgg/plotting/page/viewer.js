const SCALE_NAMES = {
  photo: "shared by classes",
  map: "own for each map",
  all: "shared by photos",
};
const PIXELS = 4e5; // a larger photo is coloured at a lower resolution

/** Photos under their maps. `told` is what `flaxvgg.plotting.page.viewing` writes. */
class Viewer {
  constructor(root, told) {
    this.root = root;
    this.told = told;
    this.find = (selector) => root.querySelector(selector);
    this.source = told.photos ? new Carried(told) : new Served();
    this.layers = told.layers ?? [...new Set(told.methods.flatMap((method) => method.layers))];
    this.state = { left: told.start[0], right: told.start[1], k: 0, layer: told.layer ?? 0 };
    this.photos = new Photos(root, this.source, told.sorts, (i) => this.open(i));
    this.channels = told.channels ? new Channels(this.find(".channels"), this) : null;
    this.controls();
    this.photos.layer = this.state.layer;
    this.photos.show(0).then(() => this.photos.rows.length && this.open(this.photos.rows[0].i));
  }

  controls() {
    const { told, state } = this;
    const choice = (name, options, value, chosen, isShown = options.length > 1) => {
      const select = this.find(`.${name} select`);
      select.append(...options.map(([text, key]) => new Option(text, key)));
      select.value = value;
      select.closest("label").hidden = !isShown;
      select.addEventListener("change", () => chosen(select.value));
    };
    const looks = told.looks.map((look, i) => [look.name, i]);
    choice("left", looks, state.left, (value) => this.set({ left: Number(value) }));
    choice("right", looks, state.right, (value) => this.set({ right: Number(value) }));
    choice("class", [], "", (value) => this.set({ k: Number(value) }), true);
    const layers = this.layers.map((name, i) => [name, i]);
    const isSlider = told.slider && layers.length > 1;
    const layer = (value) => this.setLayer(Number(value));
    choice("layer", layers, state.layer, layer, layers.length > 1 && !isSlider);
    const scales = told.scales.map((name) => [SCALE_NAMES[name], name]);
    state.scale = told.scales[0];
    choice("scale", scales, state.scale, (value) => this.set({ scale: value }));
    const signed = told.methods.some((method) => method.kind === "signed");
    const plain = told.methods.some((method) => method.kind !== "signed");
    const colours = [...(signed ? Object.keys(SIGNED) : []), ...(plain ? Object.keys(SCALES) : [])];
    state.colours = colours[0];
    choice("colours", colours.map((name) => [name, name]), colours[0], (value) => this.set({ colours: value }));
    const slide = (name, value, chosen, text) => {
      const input = this.find(`.${name} input`);
      const output = this.find(`.${name} output`);
      input.value = value;
      const show = () => output && (output.textContent = text(input.value));
      input.addEventListener("input", () => {
        show();
        chosen(Number(input.value));
      });
      show();
    };
    const share = (value) => `${value} %`;
    Object.assign(state, { opacity: 0.75, top: told.top ?? 1, threshold: told.threshold ?? 0.5 });
    slide("opacity", 75, (value) => this.set({ opacity: value / 100 }), share);
    slide("top", Math.round(100 * state.top), (value) => this.set({ top: value / 100 }), (x) => `${x} % of the highest`);
    slide("threshold", 100 * state.threshold, (value) => this.set({ threshold: value / 100 }), (x) =>
      x === "0" ? "off" : share(x));
    this.find(".depth").hidden = !isSlider;
    this.find(".depth input").max = Math.max(layers.length - 1, 0);
    slide("depth", state.layer, (value) => this.setLayer(value), (x) => this.layers[x] ?? "");
    const stage = this.find(".stage");
    const swipe = (value) => stage.style.setProperty("--swipe", `${value}%`);
    slide("swipe", told.swipe, swipe);
    swipe(told.swipe);
    const drag = (event) => {
      if (told.looks.length < 2 || !(event.buttons & 1)) return;
      const { left, width } = stage.getBoundingClientRect();
      const value = Math.min(Math.max(Math.round((100 * (event.clientX - left)) / width), 0), 100);
      this.find(".swipe input").value = value;
      swipe(value);
    };
    stage.addEventListener("pointerdown", (event) => {
      stage.setPointerCapture(event.pointerId); // it goes on where the pointer leaves the photo
      drag(event);
    });
    stage.addEventListener("pointermove", drag);
    stage.classList.toggle("swiped", told.looks.length > 1);
    this.root.addEventListener("keydown", (event) => this.key(event));
    for (const name of ["swipe", "divider", "left-name", "right-name"]) {
      this.find(`.${name}`).hidden = told.looks.length < 2; // nothing to compare
    }
    if (!told.methods.length) for (const name of ["opacity", "top", "threshold", "colours", "scale"]) this.find(`.${name}`).hidden = true;
  }

  key(event) {
    if (event.target !== this.find(".stage") || event.ctrlKey || event.altKey || event.metaKey) return;
    const count = this.item?.labels?.length ?? 0;
    const to = {
      ArrowLeft: () => this.photos.step(-1),
      ArrowRight: () => this.photos.step(1),
      ArrowUp: () => count && this.set({ k: (this.state.k + count - 1) % count }),
      ArrowDown: () => count && this.set({ k: (this.state.k + 1) % count }),
      m: () => this.set({ left: (this.state.left + 1) % this.told.looks.length }),
    }[event.key];
    if (!to) return;
    event.preventDefault();
    to();
  }

  setLayer(layer) {
    this.set({ layer });
    this.photos.layer = layer;
    if (this.told.sorts.some(({ key }) => key === "zeros")) this.photos.show(this.photos.start);
  }

  set(change) {
    Object.assign(this.state, change);
    for (const [name, value] of [["left", this.state.left], ["right", this.state.right], ["class", this.state.k]]) {
      this.find(`.${name} select`).value = value;
    }
    this.draw();
  }

  async open(i) {
    const wanted = (this.wanted = {});
    let item;
    try {
      item = await this.source.item(i);
    } catch (error) {
      this.find(".told").textContent = error.message;
      return;
    }
    if (wanted !== this.wanted) return;
    this.item = item;
    this.opened = new Map();
    this.fields = new Map();
    this.photos.mark(i);
    this.find(".name").textContent = item.name;
    const labels = item.labels ?? [];
    this.find(".class select").replaceChildren(...labels.map((name, k) => new Option(short(name), k)));
    this.find(".class").hidden = labels.length < 2;
    if (this.state.k >= labels.length) this.state.k = 0;
    this.find(".class select").value = this.state.k;
    this.find(".facts").replaceChildren(
      ...(item.facts ?? []).flatMap(([name, value]) => [
        element("dt", { textContent: name }),
        element("dd", { textContent: value }),
      ]),
    );
    this.channels?.open(item);
    this.drawn = this.draw();
    await this.drawn;
  }

  /** The maps of a method in the layer that is looked at, or in its own one. */
  async maps(method) {
    const names = this.told.methods[method].layers;
    const layer = Math.max(names.indexOf(this.layers[this.state.layer]), 0);
    const key = `${method} ${layer}`;
    const { item, opened } = this;
    if (!opened.has(key)) {
      const told = item.maps?.[method]?.[layer];
      opened.set(key, told ? openMaps(told) : Promise.resolve(null));
    }
    return { key, layer, name: names[layer], maps: await opened.get(key) };
  }

  /** What is needed to colour a map: its values, limits, and where it is above the threshold. */
  async look(method, k, height, width) {
    const { kind } = this.told.methods[method];
    const { item, fields, state } = this;
    const { key, layer, name, maps } = await this.maps(method);
    if (!maps?.ranges[k]) return null;
    const id = `${key} ${k} ${height}`;
    if (!fields.has(id)) fields.set(id, resized(maps.values(k), maps.h, maps.w, height, width));
    const all = this.told.methods[method].ranges?.[layer];
    const ranges = { photo: maps.ranges, map: [maps.ranges[k]], all: [all] }[state.scale];
    return { field: fields.get(id), limits: ends(ranges, kind, state.top), kind, layer: name, item };
  }

  inkOf(kind) {
    const names = Object.keys(scalesFor(kind === "signed"));
    const name = names.includes(this.state.colours) ? this.state.colours : names[0];
    return { name, ink: inks(name, kind === "signed", this.state.opacity) };
  }

  /** Draw once in a frame, however often it is asked for. */
  draw() {
    this.frame ??= new Promise((done) =>
      requestAnimationFrame(async () => {
        this.frame = null;
        const start = performance.now();
        await this.drawNow();
        this.cost = performance.now() - start;
        this.first ??= performance.now(); // for those who measure
        done();
      }),
    );
    return this.frame;
  }

  async drawNow() {
    const { item, state } = this;
    if (!item) return;
    const sides = [];
    for (const [side, pane] of [["left", ".under"], ["right", ".over"]]) {
      const told = this.told.looks[state[side]];
      sides.push(await this.drawPane(this.find(pane), told));
      this.find(`.${side}-name`).textContent = told.name;
    }
    if (item !== this.item) return;
    // The panes swap: left is what the swipe uncovers at the left.
    this.tell(sides);
    await this.drawClasses();
  }

  async drawPane(pane, look) {
    const { item, state } = this;
    const picture = pane.querySelector("img");
    const address = item.pictures[look.picture] ?? item.pictures[0] ?? "";
    if (picture.getAttribute("src") !== address) picture.setAttribute("src", address);
    picture.alt = look.method === null ? `${look.name}: ${item.name}` : `${item.name}, under ${look.name}`;
    picture.classList.toggle("grey", look.method !== null);
    const [h, w] = item.size;
    pane.parentNode.style.aspectRatio = `${w} / ${h}`;
    pane.parentNode.style.setProperty("--ratio", w / h);
    const box = pane.querySelector(".box");
    const canvas = pane.querySelector("canvas");
    const part = Math.min(1, Math.sqrt(PIXELS / (h * w)));
    const [height, width] = [Math.max(Math.round(h * part), 1), Math.max(Math.round(w * part), 1)];
    const seen = look.method === null ? null : await this.look(look.method, state.k, height, width);
    if (item !== this.item) return null;
    const area = seen && state.threshold ? found(seen.field, height, width, state.threshold, seen.kind) : null;
    paint(canvas, seen?.field, height, width, seen?.limits, seen && this.inkOf(seen.kind).ink, area?.mask);
    box.hidden = !area?.box;
    const edges = area?.box?.map((x, i) => Math.round((x * (i % 2 ? h : w)) / (i % 2 ? height : width)));
    if (edges) {
      const [left, top, right, bottom] = edges;
      const style = { left: left / w, top: top / h, width: (right - left) / w, height: (bottom - top) / h };
      for (const [name, value] of Object.entries(style)) box.style[name] = `${100 * value}%`;
    }
    return { look, seen, edges, share: area?.share };
  }

  tell(sides) {
    const { item, state } = this;
    const lines = [];
    const cutOff = state.top < 1 ? `, ended at ${Math.round(100 * state.top)} % of the highest value` : "";
    let limits = null;
    for (const side of sides) {
      if (!side || side.look.method === null) continue;
      const { look, seen, edges, share } = side;
      if (!seen) {
        lines.push(`${look.name}: no finite values`);
        continue;
      }
      const at = seen.layer ? ` at ${seen.layer}` : "";
      const [from, to] = seen.limits ?? [null, null];
      const range = seen.limits
        ? `${number(from)} to ${number(to)}, a scale ${SCALE_NAMES[state.scale]}${cutOff}`
        : "nothing to show: no value above 0, or all the same";
      const area = edges
        ? `; at ${Math.round(100 * state.threshold)} % of this map's highest, box ${edges.join(", ")} ` +
          `of ${item.size[1]}x${item.size[0]}, ${percent(share)} of the photo`
        : "";
      lines.push(`${look.name}${at}: colours from ${range}${area}.`);
      limits ??= seen.limits && { ends: seen.limits, kind: seen.kind };
    }
    this.find(".told").textContent = lines.join(" ");
    const ramp = this.find(".ramp");
    ramp.hidden = !limits;
    if (!limits) return;
    const canvas = ramp.querySelector("canvas");
    const bytes = coloursOf(this.inkOf(limits.kind).name).flatMap((colour) => [...colour, 255]);
    canvas.getContext("2d").putImageData(new ImageData(new Uint8ClampedArray(bytes), 256, 1), 0, 0);
    ramp.querySelector(".from").textContent = number(limits.ends[0]);
    ramp.querySelector(".to").textContent = number(limits.ends[1]);
  }

  /** A button for each class: its map, its logit and its probability. */
  async drawClasses() {
    const { item, state } = this;
    const parent = this.find(".classes");
    const looks = this.told.looks;
    const method = looks[state.left].method ?? looks[state.right].method;
    const labels = method === null ? [] : (item.labels ?? []);
    const { threshold, swipe, ...shown } = state;
    const wanted = JSON.stringify([method, shown]);
    if (this.tilesOf === item && this.tilesAs === wanted) return; // nothing that they depend on
    [this.tilesOf, this.tilesAs] = [item, wanted];
    parent.hidden = !labels.length;
    while (parent.children.length > labels.length) parent.lastChild.remove();
    const [h, w] = item.size;
    const part = 96 / Math.max(h, w);
    const [height, width] = [Math.max(Math.round(h * part), 1), Math.max(Math.round(w * part), 1)];
    for (let k = 0; k < labels.length; k++) {
      const seen = await this.look(method, k, height, width);
      if (item !== this.item) return;
      const tile = parent.children[k] ?? parent.appendChild(this.tile(k));
      paint(tile.querySelector("canvas"), seen?.field, height, width, seen?.limits, seen && this.inkOf(seen.kind).ink);
      const picture = tile.querySelector("img");
      if (picture.getAttribute("src") !== item.pictures[0]) picture.setAttribute("src", item.pictures[0] ?? "");
      tile.querySelector(".pane").style.aspectRatio = `${w} / ${h}`;
      const chance = item.probabilities?.[k];
      const flag = item.flags?.[method]?.[k];
      tile.querySelector("b").textContent = labels[k];
      tile.querySelector(".score").textContent = `${this.told.score ?? "logit"} ${number(item.scores?.[k])}`;
      tile.querySelector(".chance").textContent =
        chance === undefined || chance === null ? "" : `probability ${percent(chance)}`;
      tile.querySelector(".meter").hidden = chance === undefined || chance === null;
      tile.querySelector(".meter i").style.width = `${100 * (chance ?? 0)}%`;
      tile.querySelector(".flag").textContent = flag ?? "";
      tile.setAttribute("aria-pressed", String(k === state.k));
    }
  }

  tile(k) {
    const meter = element("span", { className: "meter", "aria-hidden": "true" }, element("i"));
    const tile = element(
      "button",
      { type: "button" },
      element("span", { className: "pane" }, element("img", { alt: "", className: "grey" }), element("canvas")),
      element("span", { className: "words" }, ...["b", "score", "chance", "flag"].map((name) =>
        name === "b" ? element("b") : element("span", { className: name })), meter),
    );
    tile.addEventListener("click", () => this.set({ k }));
    return tile;
  }
}
