/**
 * Loaded before a program: its clocks and timers run `FIELD_SPEED` times as fast. What comes from the network takes as long as
 * ever, so to the program it is that much slower.
 */
const speed = Number(process.env.FIELD_SPEED);

const { setTimeout: timeout, setInterval: interval } = globalThis;
const { sleep } = Bun;
const [now, wall] = [performance.now.bind(performance), Date.now.bind(Date)];
const begunAt = wall();

type Timers = { setTimeout: unknown; setInterval: unknown };
const faster =
  (set: typeof timeout | typeof interval) =>
  (work: (...words: unknown[]) => void, ms = 0, ...words: unknown[]) =>
    set(work, ms / speed, ...words);
Object.assign(globalThis as Timers, { setTimeout: faster(timeout), setInterval: faster(interval) });
performance.now = () => now() * speed;
Date.now = () => begunAt + (wall() - begunAt) * speed;
Bun.sleep = (ms) => sleep(ms instanceof Date ? ms : ms / speed);
