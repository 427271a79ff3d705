/**
 * What a program may write that uses the library, and what it may not: the latter does not compile. Only `bun check` reads
 * it, and it is never run. `@ts-expect-error` is allowed here, and nowhere else.
 */
import {
  errorCodes,
  HolePunchError,
  type Link,
  pairOf,
  Participant,
  type Stream,
  type StreamPair,
} from "../participant.ts";

declare const signal: AbortSignal;

export async function right(): Promise<void> {
  await using me = new Participant({ host: "introducer.example", room: "our secret words", name: "alice" });
  using listening = me.on("said", ({ peer, name, text }) => [
    peer satisfies number | null,
    name,
    text.length,
  ]);
  me.on("linked", ({ route, elapsedMs }) => [route satisfies string, elapsedMs.toFixed()], { signal });
  me.onStream("chess/1", async (stream, { peer, name, link, purpose }) => {
    for await (const piece of pairOf(stream).readable) await link.open("echo").end(piece);
    await me.say(peer, `${name} plays ${String(purpose["colour"])}`);
  });
  await me.join({ wants: ["bob"], signal });
  const link: Link = await me.connect("bob", { signal, wait: true });
  using keeper = me.keep("bob", { signal });
  await keeper.first;
  const { readable, writable }: StreamPair = link.openPair("chess/1", { colour: "white" });
  await readable.pipeTo(writable);
  const stream: Stream = link.open("chess/1");
  stream.reset("it is not your turn");
  using forwarded = await me.forward("8080:bob:8000");
  await me.unforward(forwarded.listen);
  const onProgress = ({ bytesDone, bytes }: { bytesDone: number; bytes: number }) => bytesDone / bytes;
  const { failures } = await me.send("bob", ["photos"], { onProgress, signal });
  await me.accept("Downloads", { from: "bob" });
  const { sending } = await me.pipe("bob", { target: "22", signal });
  sending.end((await me.ping("bob")).toFixed());
  for await (const event of me.events({ signal })) {
    if (event.event === "missed") console.log(event.events);
    else if (event.event === "failed") console.log(errorCodes[event.reason], failures, listening);
  }
  await me.connect("bob").catch((error: unknown) => {
    if (error instanceof HolePunchError && error.code === "both-mappings-random") console.log(error.message);
  });
  me satisfies AsyncDisposable;
}

export async function wrong(me: Participant, link: Link, stream: Stream): Promise<void> {
  // @ts-expect-error a participant has a name
  new Participant({ host: "introducer.example", room: "our secret words" });
  // @ts-expect-error there is no such event
  me.on("spoken", () => {});
  // @ts-expect-error that event has no route
  me.on("said", ({ route }) => route);
  // @ts-expect-error no positional boolean
  await me.connect("bob", true);
  // @ts-expect-error it takes options
  await me.join(["bob"]);
  // @ts-expect-error a use is text
  link.open({ use: "chess/1" });
  // @ts-expect-error null is no peer: it is not in the room
  await me.say(null, "hello");
  // @ts-expect-error there is no such code
  new HolePunchError("it broke");
  // @ts-expect-error what is inside stays inside
  link.attach;
  // @ts-expect-error
  link.suspect();
  // @ts-expect-error
  link.session;
  // @ts-expect-error
  stream.written.seal();
  // @ts-expect-error
  stream.received;
  // @ts-expect-error
  me.peers.roster;
  // @ts-expect-error
  me.waits;
}
