const PAGE = 120; // photos in the list at once

/** The list of photos: sorted, searched, a page at a time, pictures as they come into sight. */
class Photos {
  constructor(root, source, sorts, choose) {
    Object.assign(this, { root, source, sorts, choose, start: 0, layer: 0, rows: [] });
    this.list = root.querySelector(".photos");
    this.sort = root.querySelector(".sort select");
    this.down = root.querySelector(".order input");
    this.text = root.querySelector(".search input");
    this.sort.append(...sorts.map(({ key, name }) => new Option(name, key)));
    root.querySelector(".sort").hidden = sorts.length < 2;
    this.watcher = new IntersectionObserver((seen) => {
      for (const { target, isIntersecting } of seen) {
        if (!isIntersecting) continue;
        target.src = target.thumb;
        this.watcher.unobserve(target);
      }
    }, { rootMargin: "200px" });
    this.down.checked = Boolean(sorts[0].down);
    this.sort.addEventListener("change", () => {
      this.down.checked = Boolean(sorts[this.sort.selectedIndex].down);
      this.show(0);
    });
    this.down.addEventListener("change", () => this.show(0));
    this.text.addEventListener("input", () => this.show(0));
    const page = (name, by) =>
      root.querySelector(name).addEventListener("click", () => this.show(this.start + by));
    page(".before", -PAGE);
    page(".after", PAGE);
  }

  async show(start) {
    this.start = Math.max(start, 0);
    const asked = (this.asked = {});
    const { rows, total } = await this.source.list({
      sort: this.sort.value,
      down: this.down.checked ? 1 : "",
      layer: this.layer,
      text: this.text.value,
      start: this.start,
      count: PAGE,
    });
    if (asked !== this.asked) return; // another list is wanted by now
    this.rows = rows;
    this.watcher.disconnect();
    this.list.replaceChildren(...rows.map((row) => this.entry(row)));
    const end = this.start + rows.length;
    const range = total > PAGE ? `${this.start + 1} to ${end} of ` : "";
    this.root.querySelector(".count").textContent =
      `${range}${total.toLocaleString("en")} ${total === 1 ? "photo" : "photos"}`;
    this.root.querySelector(".before").hidden = this.start === 0;
    this.root.querySelector(".after").hidden = end >= total;
    this.mark();
  }

  entry(row) {
    const picture = element("img", { alt: "", decoding: "async", thumb: row.thumb });
    if (row.thumb) this.watcher.observe(picture);
    const sort = this.sorts[this.sort.selectedIndex];
    const value = keyOf(row.keys?.[sort.key], this.layer);
    const told = typeof value === "number" ? (sort.percent ? percent : number)(value) : value;
    const words = [element("span", { textContent: row.name })];
    if (told !== undefined && told !== null) words.push(element("small", { textContent: told }));
    const button = element("button", { type: "button", title: row.name }, picture, ...words);
    button.addEventListener("click", () => this.choose(row.i));
    return element("li", {}, button);
  }

  /** Show which photo is looked at. */
  mark(i = this.current) {
    this.current = i;
    this.rows.forEach((row, at) => {
      const button = this.list.children[at]?.firstChild;
      button?.toggleAttribute("aria-current", row.i === i);
      if (row.i === i) button?.setAttribute("aria-current", "true");
    });
  }

  /** The photo so many places further in the list. */
  async step(by) {
    let at = this.rows.findIndex((row) => row.i === this.current) + by;
    if (at >= this.rows.length || at < 0) {
      const start = this.start + (at < 0 ? -PAGE : PAGE);
      if (start < 0 || this.root.querySelector(at < 0 ? ".before" : ".after").hidden) return;
      await this.show(start);
      at = at < 0 ? this.rows.length - 1 : 0;
    }
    if (this.rows[at]) this.choose(this.rows[at].i);
  }
}
