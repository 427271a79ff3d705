/**
 * The service manager that has started this program, if one wants to hear of it (sd_notify(3), `Type=notify`): that we are
 * ready, that we end, that we are alive. Until we are ready it is asked for more time again and again. Without a manager, or
 * if it does not listen, nothing happens. Owns a timer. For native/terminal/ and introducer.ts.
 */
import { writeSync } from "node:fs";
import * as libc from "./libc.ts";

/** How often it is asked for more time, and for how much: its own limit of a start is mostly 90 s. */
const extendEveryMs = 20_000;
const extendByMs = 60_000;

interface Environment {
  readonly [name: string]: string | undefined;
}

export class ServiceManager {
  /** Its address; undefined without one. */
  readonly #path: Uint8Array | undefined;
  /** How often it wants to hear that we are alive; undefined if it does not. */
  readonly #watchdogMs: number | undefined;
  #timer: NodeJS.Timeout | undefined;
  #isReady = false;

  constructor(env: Environment = process.env) {
    const { NOTIFY_SOCKET: path = "", WATCHDOG_USEC: period, WATCHDOG_PID: pid } = env;
    if (!/^[/@]./.test(path) || !libc.isSupported()) return;
    this.#path = new TextEncoder().encode(path.replace(/^@/, "\0"));
    const isOurs = pid === undefined || Number(pid) === process.pid;
    const periodMs = Number(period) / 1000;
    if (isOurs && periodMs > 0) this.#watchdogMs = periodMs;
    this.#every(extendEveryMs, `EXTEND_TIMEOUT_USEC=${extendByMs * 1000}`);
  }

  /** Counts once. */
  ready(status: string): void {
    if (this.#isReady) return;
    this.#isReady = true;
    clearInterval(this.#timer);
    this.#send(`READY=1\nSTATUS=${status}`);
    if (this.#watchdogMs !== undefined) this.#every(this.#watchdogMs / 2, "WATCHDOG=1");
  }

  stopping(): void {
    clearInterval(this.#timer);
    this.#send("STOPPING=1");
  }

  #every(ms: number, text: string): void {
    this.#timer = setInterval(() => this.#send(text), ms);
    this.#timer.unref();
  }

  #send(text: string): void {
    if (this.#path === undefined) return;
    try {
      const fd = libc.datagramsTo(this.#path);
      try {
        writeSync(fd, text);
      } finally {
        libc.close(fd);
      }
    } catch {
      // It does not listen, or is busy: what it misses it does without.
    }
  }
}
