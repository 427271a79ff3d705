import { expect, test } from "bun:test";
import { once } from "node:events";
import net from "node:net";
import { Listener } from "../native/listener.ts";
import { until } from "./native-fixture.ts";

/** Connects; resolves to whether it was accepted and greeted. */
function isGreeted(port: number): Promise<boolean> {
  const { promise, resolve } = Promise.withResolvers<boolean>();
  const socket = net.connect(port, "127.0.0.1");
  socket.on("data", () => resolve(true));
  socket.on("error", () => {});
  socket.on("close", () => resolve(false));
  return promise.finally(() => socket.destroy());
}

test("who is turned away by the hundred does not keep others out, nor those who are in", async () => {
  let isFlooded = true;
  let turnedAway = 0;
  const problems: string[] = [];
  const inside: net.Socket[] = [];
  const listener: Listener<undefined> = new Listener<undefined>(
    {
      hostname: "127.0.0.1",
      port: 0,
      socket: {
        open(socket) {
          if (!isFlooded) return void socket.write("welcome");
          turnedAway++;
          socket.terminate();
          listener.turnedAway();
        },
        data: (socket) => void socket.write("still here"),
      },
    },
    (problem) => problems.push(problem),
  );
  const { port } = listener;
  isFlooded = false;
  const guest = net.connect(port, "127.0.0.1");
  await once(guest, "data");
  isFlooded = true;
  for (let n = 0; n < 300; n++) inside.push(net.connect(port, "127.0.0.1").on("error", () => {}));
  await until("all of them are gone", () => inside.every(({ destroyed }) => destroyed));
  expect(turnedAway).toBeWithin(32, 300); // the others did not have to be accepted
  isFlooded = false;
  guest.write("?");
  expect(String((await once(guest, "data"))[0])).toBe("still here");
  expect(await isGreeted(port)).toBe(true);
  expect([listener.port, problems]).toEqual([port, []]);
  guest.destroy();
  listener.stop();
  expect(await isGreeted(port)).toBe(false);
});

test("a port that is taken is an error at once", () => {
  const options = { hostname: "127.0.0.1", socket: { data() {} } };
  const first = new Listener<undefined>({ ...options, port: 0 }, () => {});
  expect(() => new Listener<undefined>({ ...options, port: first.port }, () => {})).toThrow(/listen/);
  first.stop();
});
