/** A listener in a program that has no descriptor left, for listener.test.ts. Says on standard output what happens. */
import { openSync, closeSync } from "node:fs";
import { Listener } from "../../native/host/listener.ts";

const say = (text: string) => void console.log(text);
/** Of the processor, when it was said. Before that Bun may accept in vain, for as long as the listener takes to look. */
let used = process.cpuUsage();
const listener: Listener<undefined> = new Listener<undefined>(
  { hostname: "127.0.0.1", port: 0, socket: { open: (socket) => void socket.write("welcome"), data() {} } },
  (problem) => {
    say(`problem ${problem}`);
    used = process.cpuUsage();
  },
);
const held: number[] = [];
try {
  for (;;) held.push(openSync("/dev/null", "r"));
} catch {
  say(`port ${listener.port}`);
}
for await (const _ of Bun.stdin.stream()) {
  const { user, system } = process.cpuUsage(used);
  say(`busy ${Math.round((user + system) / 1000)} ms`);
  for (const fd of held.splice(0)) closeSync(fd);
}
