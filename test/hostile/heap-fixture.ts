/**
 * An introducer with the options of a test, as JSON, in a process of its own, so that nothing else is on its heap. It says
 * where it listens; then, at each line of standard input, how many objects of each kind there are when its garbage has
 * been collected, and what else is asked for.
 */
import { heapStats } from "bun:jsc";
import { Introducer } from "../../introducer.ts";

let events = 0;
const introducer = Introducer.start({
  host: "127.0.0.1",
  port: 0,
  ...JSON.parse(process.argv[2] ?? "{}"),
  onEvent: () => events++,
});
const { port, probePorts } = introducer;
console.log(JSON.stringify({ port, probePorts }));

for await (const _ of console) {
  for (let times = 0; times < 3; times++) {
    await Bun.sleep(20); // what was under way is over, and on no stack
    Bun.gc(true);
  }
  const {
    Object: objects = 0,
    Map: maps = 0,
    Set: sets = 0,
    Array: arrays = 0,
  } = heapStats().objectTypeCounts;
  const { connections, participants, rooms, relays } = introducer.stats;
  const { user, system } = process.cpuUsage();
  const busyMs = (user + system) / 1000;
  const rss = Math.round(process.memoryUsage.rss() / 1024 ** 2);
  console.log(
    JSON.stringify({
      objects,
      maps,
      sets,
      arrays,
      connections,
      participants,
      rooms,
      relays,
      busyMs,
      rss,
      events,
    }),
  );
}

process.exit(); // whoever asked is gone
