// What the browser keeps for the pages. A browser that keeps nothing (blocked, full) is no reason to fail.

/** A store of JSON values; `set` says whether the value was taken. */
class Kept {
  constructor(storage) {
    this.storage = storage;
  }

  get(name) {
    try {
      return JSON.parse(this.storage().getItem(name));
    } catch {
      return null;
    }
  }

  set(name, value) {
    try {
      this.storage().setItem(name, JSON.stringify(value));
      return true;
    } catch {
      return false;
    }
  }

  remove(name) {
    try {
      this.storage().removeItem(name);
    } catch {
      // Nothing was kept, so nothing is left.
    }
  }
}

/** Until the tab closes. */
export const inTab = new Kept(() => sessionStorage);
/** Across visits. */
export const onDisk = new Kept(() => localStorage);
