/** What the tests of the introducer share: one on a free port with all it tells its operator, and who comes to it. */
import { join } from "node:path";
import { Introducer } from "../../introducer.ts";
import { renderParticipants } from "../../native/terminal/introducer-tables.ts";
import type { IntroducerEvent, IntroducerOptions } from "../../native/introducer/events.ts";
import type { Limits } from "../../native/introducer/limits.ts";
import { at, Client, linkedBy, registration } from "../client-fixture.ts";
import { LineDecoder, type Mapping, type Prediction } from "../../protocol.ts";

export const isLinux = process.platform === "linux";

/** An introducer on a free port, and all it told its operator. */
export function introduce(limits: Partial<Limits> = {}, options: IntroducerOptions = { relay: false }) {
  const events: IntroducerEvent[] = [];
  const waiting = new Set<() => void>();
  const onEvent = (event: IntroducerEvent) => {
    events.push(event);
    for (const wake of waiting) wake();
  };
  const introducer = Introducer.start({ host: "127.0.0.1", port: 0, limits, onEvent, ...options });
  const happened = <T extends IntroducerEvent["event"]>(name: T) => {
    const { promise, resolve } = Promise.withResolvers<Extract<IntroducerEvent, { event: T }>>();
    const wake = () => {
      const found = events.find(
        (event): event is Extract<IntroducerEvent, { event: T }> => event.event === name,
      );
      if (found) resolve(found);
    };
    waiting.add(wake);
    wake();
    return promise.finally(() => waiting.delete(wake));
  };
  const join = async (name: string, room?: string, answersPings = true, address?: string) => {
    const client = new Client(introducer.port, address);
    client.answersPings = answersPings;
    client.send(registration(name, room));
    const { id } = await client.next("registered");
    // Nobody is introduced before both have said how their NATs map.
    client.send({ type: "mapping", mapping: "unknown" });
    await client.next("peers", ({ more }) => !more);
    return Object.assign(client, { id });
  };
  const dispose = () => introducer.stop();
  return { introducer, events, happened, join, [Symbol.asyncDispose]: dispose };
}

/** The operator's table. */
export async function rendered(...all: Parameters<typeof renderParticipants>): Promise<string> {
  return (await renderParticipants(...all)).join("");
}

export type Joined = Client & { id: number };

/** Says how its NAT maps, and waits until the introducer has read it. */
export async function maps(client: Joined, mapping: Mapping): Promise<void> {
  client.send({ type: "mapping", mapping });
  await client.settled();
}

/** Two in one room, with these mappings. */
export async function pairOf(scene: ReturnType<typeof introduce>, ofAnna: Mapping, ofBert: Mapping) {
  const [anna, bert] = [await scene.join("anna"), await scene.join("bert")];
  await maps(anna, ofAnna);
  await maps(bert, ofBert);
  const dispose = () => {
    anna[Symbol.dispose]();
    bert[Symbol.dispose]();
  };
  return { anna, bert, [Symbol.dispose]: dispose };
}

export const noAnswer = { type: "failed", reason: "no-candidate-answered" } as const;
export const measuredAt = (endpoint: string, step: number): Prediction => ({ endpoint: at(endpoint), step });

/** Asks, and fails for good at once. */
export async function failOnce(asker: Joined, target: Joined): Promise<void> {
  asker.send({ type: "connect", peer: target.id });
  const { token } = await asker.next("punch", ({ role }) => role === "controlling");
  asker.send({ ...noAnswer, reason: "refused-by-peer", peer: target.id, token });
  await target.next("failed", (failed) => failed.token === token);
}

/** Asks, and both link and unlink. */
export async function linkOnce(asker: Joined, target: Joined): Promise<void> {
  asker.send({ type: "connect", peer: target.id });
  const [{ token }] = await Promise.all([asker.next("punch"), target.next("punch")]);
  for (const [one, other] of [
    [asker, target],
    [target, asker],
  ] as const) {
    one.send({ ...linkedBy(token), peer: other.id });
    one.send({ type: "unlinked", peer: other.id, reason: "disconnected" });
    await one.settled();
  }
}

/** Registers without saying how its NAT maps. */
export async function silent(
  scene: ReturnType<typeof introduce>,
  name: string,
  localAddress = "127.0.0.1",
): Promise<Joined> {
  const client = new Client(scene.introducer.port, localAddress);
  client.send(registration(name));
  const { id } = await client.next("registered");
  await client.next("peers", ({ more }) => !more);
  return Object.assign(client, { id });
}

export const linksOf = (scene: ReturnType<typeof introduce>) =>
  Object.fromEntries(scene.introducer.participants.map(({ name, links }) => [name, links]));

export const program = join(import.meta.dir, "..", "..", "introducer.ts");

export function run(args: string[], stdin: "ignore" | "pipe" = "ignore") {
  const env = { ...process.env, NO_COLOR: "1" };
  return Bun.spawn([process.execPath, program, ...args], { stdin, stdout: "pipe", stderr: "pipe", env });
}

export async function ended(args: string[]) {
  await using child = run(args);
  const [stdout, stderr] = await Promise.all([child.stdout.text(), child.stderr.text()]);
  return { code: await child.exited, stdout, stderr };
}

export async function* textLines(stream: ReadableStream<Uint8Array>): AsyncGenerator<string, void> {
  const decoder = new LineDecoder();
  for await (const chunk of stream) yield* decoder.push(chunk);
}

export async function* jsonLines(stream: ReadableStream<Uint8Array>): AsyncGenerator<IntroducerEvent, void> {
  for await (const line of textLines(stream)) yield JSON.parse(line) as IntroducerEvent;
}
