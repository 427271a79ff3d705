/** Who is listed though its host is gone: its name is free for whoever comes, and nobody is introduced to it for long. */
import { expect, setDefaultTimeout } from "bun:test";
import { Client, type MessageOf, registration } from "../client-fixture.ts";
import { until } from "../native-fixture.ts";
import { introduce } from "./introducer-fixture.ts";
import { testMs } from "../patience-fixture.ts";
import { testAtOnce } from "../places-fixture.ts";

const test = testAtOnce(8);
setDefaultTimeout(testMs);

const [ours, theirs] = ["ab".repeat(32), "cd".repeat(32)];
const secretRoom = "0123456789abcdef".repeat(4);
let instances = 0;

class Program extends Client {
  readonly #register: Parameters<Client["send"]>[0];

  constructor(port: number, name: string, fingerprint: string, room: string) {
    super(port);
    const instance = (++instances).toString(16).padStart(16, "0");
    this.#register = { ...registration(name, room), fingerprint, instance };
  }

  /** The name that it has, or the one that is free. */
  async wants(name?: string): Promise<MessageOf<"registered"> | MessageOf<"refused">> {
    this.send({ ...this.#register, ...(name !== undefined && { name }) } as Parameters<Client["send"]>[0]);
    return Promise.race([this.next("registered"), this.next("refused")]);
  }

  get pings(): number {
    return this.seen.filter(({ type }) => type === "ping").length;
  }
}

/** An introducer, and bob, of whose host nothing comes any more. */
async function haunted(room: string) {
  const scene = introduce();
  const meet = (name: string, fingerprint: string) =>
    new Program(scene.introducer.port, name, fingerprint, room);
  const bob = meet("bob", ours);
  await bob.wants();
  await until("its first pings have come", () => bob.pings === 3);
  await bob.settled(); // and are answered
  const dies = () => (bob.answersPings = false);
  return { ...scene, meet, bob, dies };
}

test("in a private room whoever comes has the name of one who is gone, whatever its certificate", async () => {
  await using scene = await haunted(secretRoom);
  scene.dies();
  using anew = scene.meet("bob", theirs);
  expect(await anew.wants()).toMatchObject({ type: "registered", name: "bob", id: 2 });
  expect(await scene.happened("left")).toMatchObject({
    id: 1,
    name: "bob",
    reason: expect.stringContaining("did not answer"),
  });
  expect(scene.introducer.participants.map(({ name }) => name)).toEqual(["bob"]);
});

test("also one who has answered a moment ago may be gone", async () => {
  await using scene = await haunted(secretRoom);
  using claimant = scene.meet("bob", theirs);
  expect(await claimant.wants()).toMatchObject({ code: "name-taken" });
  scene.dies();
  using anew = scene.meet("bob", theirs);
  expect(await anew.wants()).toMatchObject({ type: "registered", name: "bob" });
});

test("elsewhere only its certificate has it", async () => {
  await using scene = await haunted("lobby");
  scene.dies();
  using stranger = scene.meet("bob", theirs);
  using anew = scene.meet("bob", ours);
  expect(await stranger.wants()).toMatchObject({ code: "name-taken", name: "bob-2" });
  expect(await anew.wants()).toMatchObject({ type: "registered", name: "bob" });
});

test("of two who want the name of one who is gone one has it, and the other is told which is free", async () => {
  await using scene = await haunted(secretRoom);
  scene.dies();
  using one = scene.meet("bob", theirs);
  using other = scene.meet("bob", "ef".repeat(32));
  const answers = await Promise.all([one.wants(), other.wants()]);
  expect(answers.map(({ type, name }) => [type, name]).sort()).toEqual([
    ["refused", "bob-2"],
    ["registered", "bob"],
  ]);
});

test("a certificate that comes under another name has the earlier program of it asked, too", async () => {
  await using scene = await haunted(secretRoom);
  scene.dies();
  using anew = scene.meet("robert", ours);
  expect(await anew.wants()).toMatchObject({ type: "registered", name: "robert" });
  expect(await anew.next("left")).toEqual({ type: "left", id: 1 });
});

test("however many claim the name of one who is there, it keeps it, and is asked four times a second", async () => {
  await using scene = await haunted(secretRoom);
  const before = scene.bob.pings;
  const startedAt = performance.now();
  for (let round = 0; round < 4; round++) {
    const claimants = Array.from({ length: 16 }, (_, n) => scene.meet("bob", n % 2 === 0 ? ours : theirs));
    for (const answer of await Promise.all(claimants.map((one) => one.wants())))
      expect(answer).toMatchObject({ code: "name-taken", name: "bob-2" });
    for (const one of claimants) one[Symbol.dispose]();
  }
  await scene.bob.settled();
  expect(scene.bob.pings - before).toBeLessThanOrEqual(1 + (performance.now() - startedAt) / 250);
  expect(scene.introducer.participants.map(({ id, name }) => [id, name])).toEqual([[1, "bob"]]);
});

test("what it says counts as an answer: it may be busy with more", async () => {
  await using scene = await haunted(secretRoom);
  scene.dies();
  scene.bob.heard = ({ type }) => type === "ping" && scene.bob.send({ type: "mapping", mapping: "random" });
  using claimant = scene.meet("bob", theirs);
  expect(await claimant.wants()).toMatchObject({ code: "name-taken" });
});

test("only its first wish has a holder asked: what it is offered then is told at once", async () => {
  await using scene = await haunted(secretRoom);
  using second = scene.meet("bob-2", theirs);
  await second.wants();
  await second.settled();
  second.answersPings = false;
  using third = scene.meet("bob", theirs);
  expect(await third.wants()).toMatchObject({ code: "name-taken", name: "bob-3" });
  expect(await third.wants("bob-2")).toMatchObject({ code: "name-taken", name: "bob-2-2" });
});

test("an introduction to one who is gone ends by that, not with its punch", async () => {
  await using scene = await haunted(secretRoom);
  using anna = scene.meet("anna", theirs);
  const { id } = (await anna.wants()) as MessageOf<"registered">;
  scene.dies();
  for (const one of [anna, scene.bob]) one.send({ type: "mapping", mapping: "endpoint-independent" });
  await scene.bob.settled();
  expect(id).toBe(2);
  const silentFrom = performance.now();
  await until("nothing was heard of bob for a second", () => performance.now() - silentFrom > 1000);
  anna.send({ type: "connect", peer: 1 });
  await anna.next("punch");
  expect(await anna.next("failed")).toMatchObject({ peer: 1, reason: "peer-left" });
  expect(await anna.next("left")).toEqual({ type: "left", id: 1 });
});

test("who has just said something is not asked when somebody wants to meet it", async () => {
  await using scene = await haunted(secretRoom);
  using anna = scene.meet("anna", theirs);
  await anna.wants();
  for (const one of [anna, scene.bob]) one.send({ type: "mapping", mapping: "endpoint-independent" });
  await scene.bob.settled();
  const before = scene.bob.pings;
  scene.bob.send({ type: "echo", text: "just now" });
  anna.send({ type: "connect", peer: 1 });
  await Promise.all([anna.next("punch"), scene.bob.next("punch")]);
  await scene.bob.settled();
  expect(scene.bob.pings).toBe(before);
});

test("who has just said something, and is silent when the first round has failed, is asked then", async () => {
  await using scene = await haunted(secretRoom);
  using anna = scene.meet("anna", theirs);
  await anna.wants();
  for (const one of [anna, scene.bob]) one.send({ type: "mapping", mapping: "endpoint-independent" });
  await scene.bob.settled();
  scene.dies();
  anna.send({ type: "connect", peer: 1 });
  const { token, last } = await anna.next("punch");
  expect(last).toBe(false);
  anna.send({ type: "failed", peer: 1, token, reason: "no-candidate-answered" });
  expect(await anna.next("failed")).toMatchObject({ peer: 1, reason: "peer-left" });
  expect(await scene.happened("left")).toMatchObject({
    id: 1,
    reason: expect.stringContaining("did not answer"),
  });
});

test("an introducer that could not listen meanwhile judges nobody", async () => {
  await using scene = await haunted(secretRoom);
  let isAsked = false;
  scene.bob.heard = ({ type }) => {
    if (type !== "ping" || isAsked) return;
    isAsked = true;
    Bun.sleepSync(2_500); // longer than an answer may take; it comes right after that
  };
  using claimant = scene.meet("bob", theirs);
  expect(await claimant.wants()).toMatchObject({ code: "name-taken" });
  expect(isAsked).toBe(true);
});
