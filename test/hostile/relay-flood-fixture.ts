/**
 * Sixteen relayed links between two addresses, in a process of its own, each of whose ends sends one byte in a segment,
 * again and again, as fast as they are taken: `PORT`. It says when it begins; at SIGUSR2, how many it has sent.
 */
import { dial, LineSocket, makeIdentity, Member } from "./wire.ts";

const port = Number(process.argv[2]);
const [pairs, addresses] = [16, ["127.0.0.2", "127.0.0.3"]] as const;
/** Bytes that wait in this program for the kernel to take them: beyond, the introducer does not read. */
const mostUnsent = 64;
const identity = makeIdentity();
const ends: LineSocket[] = [];

async function relay(from: string, token: string): Promise<void> {
  const end = new LineSocket(await dial("127.0.0.1", port, from));
  end.say({ type: "relay", token });
  await end.hears("relaying");
  end.onBytes = () => {};
  ends.push(end);
}

for (let n = 0; n < pairs; n++) {
  const sides = [`eve${n}`, `mallory${n}`].map((name, side) =>
    Member.join(port, { name, identity, from: addresses[side]!, lie: { room: `${n}`.padStart(64, "e") } }),
  );
  const [eve, mallory] = (await Promise.all(sides)) as [Member, Member];
  for (const one of [eve, mallory]) one.say({ type: "mapping", mapping: "random" });
  await mallory.hears("updated", ({ id, mapping }) => id === eve.id && mapping === "random");
  await eve.hears("updated", ({ id, mapping }) => id === mallory.id && mapping === "random");
  eve.say({ type: "connect", peer: mallory.id });
  const [{ token }] = await Promise.all([eve.hears("relay"), mallory.hears("relay")]);
  await Promise.all(addresses.map((from) => relay(from, token)));
}

let sent = 0;
process.on("SIGUSR2", () => console.log(JSON.stringify({ sent })));
console.log(JSON.stringify({ sent }));
const turn = () => {
  for (const { socket } of ends) {
    if (socket.writableLength > mostUnsent) continue;
    socket.write("x");
    sent++;
  }
  setImmediate(turn);
};
turn();
