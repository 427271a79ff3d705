/**
 * Who sends one byte in a segment, again and again, as fast as they are taken, by many connections from two addresses, in
 * a process of its own: `KIND PORT`. The kinds: both ends of sixteen relayed links; connections to a probe port; lines without an end; those
 * that are being closed for a line that is none. It says when it begins; at SIGUSR2, how many it has sent.
 */
import { dial, LineSocket, makeIdentity, Member } from "./wire.ts";

const kind = process.argv[2];
const port = Number(process.argv[3]);
const [pairs, addresses] = [16, ["127.0.0.2", "127.0.0.3"]] as const;
/** Bytes that wait in this program for the kernel to take them: beyond, the introducer does not read. */
const mostUnsent = 64;
const identity = makeIdentity();
/** Of each address, where they are not relayed. */
const perAddress = 32;
const ends = new Set<LineSocket>();

async function relay(from: string, token: string): Promise<void> {
  const end = new LineSocket(await dial("127.0.0.1", port, from));
  end.say({ type: "relay", token });
  await end.hears("relaying");
  end.onBytes = () => {};
  ends.add(end);
}

/** Comes again when it is sent away. */
async function visit(from: string, says: string): Promise<void> {
  for (;;) {
    const end = new LineSocket(await dial("127.0.0.1", port, from));
    end.raw(says);
    end.onBytes = () => {};
    ends.add(end);
    // Whoever is being closed may go on until its time is over.
    const isOver = kind === "closing" ? [] : [end.lines.over().catch(() => {})];
    await Promise.race([...isOver, Bun.sleep(1_400)]);
    ends.delete(end);
    end.cut();
  }
}

async function relayAll(): Promise<void> {
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
}

if (kind === "relays") await relayAll();
else {
  const says = kind === "closing" ? "what?\n" : "x";
  for (const from of addresses) for (let n = 0; n < perAddress; n++) void visit(from, says).catch(() => {});
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
