/** The photos that a page carries. */
class Carried {
  constructor(told) {
    this.photos = told.photos;
  }

  async list({ sort, down, layer, text, start, count }) {
    const value = (i) => keyOf(this.photos[i].keys?.[sort], layer);
    const wanted = text.toLowerCase();
    const rows = this.photos.map((_, i) => i).filter((i) => this.photos[i].name.toLowerCase().includes(wanted));
    if (sort === "name") rows.sort((a, b) => this.photos[a].name.localeCompare(this.photos[b].name));
    else if (sort) {
      // What has no value comes last, whichever way.
      const last = down ? -Infinity : Infinity;
      rows.sort((a, b) => (value(a) ?? last) - (value(b) ?? last) || a - b);
    }
    if (down) rows.reverse();
    return {
      total: rows.length,
      rows: rows.slice(start, start + count).map((i) => {
        const { name, pictures, keys } = this.photos[i];
        return { i, name, keys, thumb: pictures[pictures.length - 1] };
      }),
    };
  }

  async item(i) {
    return this.photos[i];
  }
}

/** The photos of a store, asked for as they are looked at. */
class Served {
  async list(wanted) {
    return this.ask(`list?${new URLSearchParams(wanted)}`);
  }

  async item(i) {
    return this.ask(`item/${i}`);
  }

  async ask(address) {
    const answer = await fetch(address);
    if (!answer.ok) throw new Error(await answer.text());
    return answer.json();
  }
}

/** What photos are sorted by: a number, or one for each layer. */
function keyOf(value, layer) {
  return Array.isArray(value) ? value[layer] : value;
}
