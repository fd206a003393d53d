// The live strip: how fast this answer comes, and how full the server is.

import { metrics } from "./api.js";

const BUSY_MS = 1000;
const IDLE_MS = 5000;
const REFUSED_MS = 60_000;
const GAPS = 60;

/** Milliseconds as people read them. */
export function milliseconds(ms) {
  return ms < 10 ? `${ms.toFixed(1)} ms` : ms < 10_000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`;
}

/** Times one answer on the client's clock. Tokens are counted as they arrive; the usage at the end corrects the count. */
export class Timing {
  constructor() {
    this.sent = performance.now();
    this.first = null;
    this.last = null;
    this.tokens = 0;
    this.gaps = [];
  }

  arrived(tokens) {
    const now = performance.now();
    if (this.first === null) this.first = now;
    else this.gaps.push((now - this.last) / Math.max(1, tokens));
    this.last = now;
    this.tokens += tokens;
  }

  get ttftMs() {
    return this.first === null ? null : this.first - this.sent;
  }

  get itlMs() {
    return this.tokens < 2 ? null : (this.last - this.first) / (this.tokens - 1);
  }

  get rate() {
    return this.itlMs ? 1000 / this.itlMs : null;
  }

  /** What is kept with the answer and exported. */
  summary() {
    const rounded = (value) => (value === null ? null : Math.round(value * 10) / 10);
    return { ttft_ms: rounded(this.ttftMs), itl_ms: rounded(this.itlMs), tokens_per_s: rounded(this.rate), tokens: this.tokens };
  }
}

/** Shows a Timing and the server's gauges in the strip's elements; `onLost` hears where the server is gone. */
export class Meter {
  constructor(root, onLost) {
    this.onLost = onLost;
    this.at = (name) => root.querySelector(`#m-${name}`);
    this.timing = null;
    this.busy = false;
    this.timer = 0;
    document.addEventListener("visibilitychange", () => !document.hidden && this.poll());
    this.poll();
  }

  begin(timing) {
    this.timing = timing;
    this.busy = true;
    this.poll();
  }

  end() {
    this.busy = false;
    this.show();
    this.poll();
  }

  show() {
    const { ttftMs, itlMs, rate, gaps } = this.timing;
    this.at("ttft").textContent = ttftMs === null ? "…" : milliseconds(ttftMs);
    this.at("itl").textContent = itlMs === null ? "–" : milliseconds(itlMs);
    this.at("rate").textContent = rate === null ? "–" : `${rate.toFixed(rate < 100 ? 1 : 0)} tok/s`;
    const recent = gaps.slice(-GAPS);
    const most = Math.max(...recent, 1e-9);
    const points = recent.map((gap, n) => `${n},${(15 - (14 * gap) / most).toFixed(1)}`);
    this.at("line").firstElementChild.setAttribute("points", points.join(" "));
  }

  async poll() {
    clearTimeout(this.timer);
    let pause = this.busy ? BUSY_MS : IDLE_MS;
    try {
      if (!document.hidden) this.showLoad(await metrics());
    } catch (error) {
      if (error.unreachable) this.onLost();
      else pause = REFUSED_MS;
    }
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.poll(), pause);
  }

  showLoad(found) {
    const used = found.get('drivetrain_kv_pages{state="used"}');
    const capacity = found.get("drivetrain_kv_pages_capacity");
    const share = capacity ? (100 * used) / capacity : 0;
    this.at("kv").textContent = capacity ? `${share.toFixed(share < 10 ? 1 : 0)} %` : "–";
    this.at("kv-bar").style.width = `${share}%`;
    const running = found.get("drivetrain_requests_running");
    const waiting = found.get("drivetrain_requests_waiting");
    this.at("batch").textContent = running === undefined ? "–" : waiting ? `${running} + ${waiting} waiting` : `${running} running`;
  }
}
