/**
 * Who is not linked: whoever has a stolen certificate, what an introducer has seen, or another connection's proof, and
 * not the room's words. With the real programs; the attackers and their introducer are by hand.
 */
import { afterAll, expect, setDefaultTimeout } from "bun:test";
import { join } from "node:path";
import type * as net from "node:net";
import { Driven, homeOf } from "../driven-fixture.ts";
import { loadIdentity, makeRun, type Identity } from "../../native/secure/identity.ts";
import {
  Bait,
  frame,
  helloFrame,
  hex,
  type LineSocket,
  lobbyKey,
  LyingIntroducer,
  makeIdentity,
  memberProof,
  openFrame,
  peerLine,
  peersLine,
  punchLine,
  RawLink,
  readHello,
  registered,
  roomKey,
  runSeal,
  shownInstance,
  type Line,
} from "./wire.ts";
import { testAtOnce } from "../places-fixture.ts";
import { testMs } from "../patience-fixture.ts";

const test = testAtOnce(24);
setDefaultTimeout(testMs);

const words = "k7xq-m2vp-9dfa-w4tz";
const room = await roomKey(words);
/** An introduction that makes a link may take so long on a busy machine. */
const linkMs = 5_000;
/** One that makes none lasts so long. */
const attackMs = 2_000;

type Role = RawLink["role"];
const roles = ["controlling", "controlled"] as const;
const otherRole = (role: Role): Role => (role === "controlling" ? "controlled" : "controlling");

/** Where a visitor's control connection comes from: there it punches. */
const endpointOf = ({ socket }: LineSocket) => `127.0.0.1:${socket.remotePort}`;

/** Bob's program in the private room, with an introducer that lies, and alice, whose certificate was stolen. */
class Scene implements AsyncDisposable {
  readonly house: LyingIntroducer;
  readonly bob: Driven;
  readonly alice = new Stolen(this, "alice", 2);
  register!: Line;
  control!: LineSocket;
  #peers = 2;

  private constructor(house: LyingIntroducer, bob: Driven) {
    this.house = house;
    this.bob = bob;
  }

  static async open(...options: string[]): Promise<Scene> {
    const greet = (line: Line, visitor: LineSocket) => {
      if (line.type !== "register") return;
      [scene.register, scene.control] = [line, visitor];
      visitor.say(registered(line, { public: endpointOf(visitor) }), peersLine(scene.alice.line));
    };
    const house = await LyingIntroducer.listen(greet);
    const bob = new Driven(house.port, "bob", "--room", words, "--no-portmap", ...options);
    const scene = new Scene(house, bob);
    await bob.seen("alice");
    return scene;
  }

  /** One more like alice: several at once have one bob to themselves. */
  async another(): Promise<Stolen> {
    const id = ++this.#peers;
    const one = new Stolen(this, `alice${String.fromCodePoint(0x60 + id)}`, id);
    this.control.say({ type: "joined", peer: one.line });
    await this.bob.seen(one.name);
    return one;
  }

  /** What an honest peer would be told of bob. */
  get shownBob(): Line {
    const { name, fingerprint, instance } = this.register;
    return peerLine({
      id: 1,
      name,
      fingerprint,
      instance: shownInstance(instance),
      public: endpointOf(this.control),
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.house[Symbol.dispose]();
    await this.bob[Symbol.asyncDispose]();
  }
}

/** A member whose certificate and key were stolen: the attacker bears that name. */
class Stolen {
  readonly scene: Scene;
  readonly name: string;
  readonly identity = makeIdentity();
  readonly instance = hex(8);
  /** As it was sniffed: what the member has shown of itself. */
  readonly line: Line;
  /** In TLS, if not the certificate of the identity. */
  shows: Identity | undefined;
  readonly #id: number;

  constructor(scene: Scene, name: string, id: number) {
    [this.scene, this.name, this.#id] = [scene, name, id];
    this.line = this.listed();
  }

  listed(lie: object = {}): Line {
    const { name, instance } = this;
    const { fingerprint } = this.identity;
    return peerLine({ id: this.#id, name, fingerprint, instance, ...lie }, room.key);
  }

  /**
   * Bob is told to punch, after asking where he is to be the asker; at the other end is whoever bears that name. If we were
   * too busy to come in time, he is told so again.
   */
  async punched(role: Role, deadlineMs = linkMs): Promise<RawLink> {
    for (;;) {
      const link = await this.tried(role, deadlineMs);
      if (link) return link;
    }
  }

  /** The same once. Undefined if that was over before TLS was up. */
  async tried(role: Role, deadlineMs: number): Promise<RawLink | undefined> {
    const { control, house, shownBob } = this.scene;
    if (role === "controlled") await this.asked();
    const token = hex(16);
    const isOver = () => house.heard.all.some((line) => line.type === "failed" && line.token === token);
    control.say(punchLine(this.line, { role: otherRole(role), token, deadlineMs }));
    try {
      return await RawLink.punch(punchLine(shownBob, { role, token }), { ...this.bearer, isOver });
    } catch (error) {
      if (!isOver()) throw error;
      return undefined;
    }
  }

  /** The same by the relay, which the introducer plays. */
  async relayed(role: Role): Promise<RawLink> {
    const { control, house, shownBob } = this.scene;
    if (role === "controlled") await this.asked();
    const token = hex(16);
    control.say({ type: "relay", peer: this.line, role: otherRole(role), token });
    await house.hears("relay", (line) => line.token === token);
    const visitor = house.visitors.find(({ lines }) => lines.all.some((line) => line.token === token))!;
    const way: net.Socket = visitor.socket;
    way.removeAllListeners("data").pause();
    way.write(JSON.stringify({ type: "relaying", rate: 1024 * 1024 }) + "\n");
    const link = new RawLink(way, { type: "", role, token, peer: shownBob }, this.bearer);
    await link.secured();
    return link;
  }

  async asked(): Promise<void> {
    this.scene.bob.type(`connect ${this.name}`);
    await this.scene.house.hears("connect", ({ peer }) => peer === this.#id);
  }

  get bearer() {
    const { name, instance } = this;
    return { identity: this.shows ?? this.identity, name, instance, room };
  }

  /** The certificates that are shown are those of a run, with a key of its own that is sealed like that. */
  run(sealOf: (publicKey: Uint8Array) => string): void {
    this.shows = { ...makeRun(this.identity, sealOf), fingerprint: this.identity.fingerprint };
  }

  /** Of that peer. */
  count(kind: "linked" | "said"): number {
    const { events } = this.scene.bob;
    return events.filter((one) => one.event === kind && "name" in one && one.name === this.name).length;
  }
}

/** The first flight of the attacker with that line instead of a right one; what a member would send at once follows. */
async function flight(link: RawLink, line: () => Buffer | Promise<Buffer>, ...more: Buffer[]): Promise<void> {
  if (link.role === "controlled") await link.nomination.promise;
  const { sessionId } = link;
  const [type, status] = link.role === "controlling" ? [frame.resume, 1] : [frame.resumed, 0];
  link.send(await line(), helloFrame(type, { status, sessionId }), ...more);
}

const lineOf = (link: RawLink, proof: string) =>
  link.role === "controlling" ? link.nominationLine(link.token, proof) : link.answerLine(proof);

/** Bob was not linked, for nothing but the proof, and told nothing of what is his. */
async function expectNothing(alice: Stolen, link: RawLink): Promise<void> {
  const { bob, house } = alice.scene;
  const isForProof = ({ name, reason }: { name: string; reason: string }) =>
    name === alice.name && reason === "authentication-failed";
  await bob.next("failed", isForProof);
  await house.hears("failed", ({ token }) => token === link.token);
  await link.frames.over();
  expect([alice.count("linked"), alice.count("said")]).toEqual([0, 0]);
  bob.type("list");
  await bob.next("peers", ({ peers }) =>
    peers.some(({ name, state }) => name === alice.name && state === "failed"),
  );
  const kinds = link.frames.all.map(({ type }) => type);
  expect(kinds.filter((type) => type !== frame.resume)).toEqual([]);
}

// --- without the words ---------------------------------------------------------------------------------------

const lies: Record<string, (link: RawLink, alice: Stolen) => Buffer | Promise<Buffer>> = {
  "no words, but a stolen certificate and a sniffed `register`": (link) => {
    link.bond.key = lobbyKey;
    return lineOf(link, link.proof());
  },
  "what `register` has shown": (link, { line }) => lineOf(link, line.proof),
  "no proof at all": (link) => {
    const [first] = lineOf(link, "").toString().split(',"proof"');
    return Buffer.from(link.role === "controlling" ? `${first}}\n` : `{"type":"nominated"}\n`);
  },
  "no line at all": () => Buffer.alloc(0),
  "the proof of the other role": (link) => lineOf(link, link.proof(otherRole(link.role))),
  "the line of the other role": (link) =>
    link.role === "controlling" ? link.answerLine() : link.nominationLine(),
  "bob's own proof, sent back": async (link) =>
    lineOf(
      link,
      link.role === "controlled" ? (await link.nomination.promise).proof : link.proof("controlled"),
    ),
  "another name": (link) => {
    link.bond.self = { ...link.bond.self, name: "carol" };
    return lineOf(link, link.proof());
  },
  "another run of the program": (link) => {
    link.bond.self = { ...link.bond.self, instance: hex(8) };
    return lineOf(link, link.proof());
  },
  "a proof for somebody else": (link) => {
    link.bond.peer = { ...link.bond.peer, fingerprint: hex(32) };
    return lineOf(link, link.proof());
  },
};

const cases = Object.keys(lies).flatMap((what) => roles.map((role) => [what, role] as const));

/** What bob allows. */
const secret = await Bait.listen();
/** One bob for each role, so that he punches in one role only: many attack him at once. */
const scenes: Partial<Record<Role, Promise<Scene>>> = {};
const attacked = async (role: Role): Promise<Stolen> =>
  (await (scenes[role] ??= Scene.open("--allow", String(secret.port)))).another();
afterAll(async () => {
  for (const role of roles) await (await scenes[role])?.[Symbol.asyncDispose]();
  secret[Symbol.dispose]();
});

test.each(cases)("nobody is linked by %s, as %s side", async (what, role) => {
  const alice = await attacked(role);
  using link = await alice.punched(role, attackMs);
  const purpose = { use: "forward", host: "127.0.0.1", port: secret.port };
  await flight(link, () => lies[what]!(link, alice), openFrame(link.firstStream, purpose));
  await expectNothing(alice, link);
  expect(secret.total).toBe(0);
});

test.each(roles)(
  "nobody is linked by the relay of an introducer, as %s side, without the words",
  async (role) => {
    const alice = await attacked(role);
    using link = await alice.relayed(role);
    link.bond.key = lobbyKey;
    await flight(link, () => lineOf(link, link.proof()), openFrame(link.firstStream, { use: "lines" }));
    await expectNothing(alice, link);
  },
);

test.each(roles)("nobody is linked by the proof of another connection, as %s side", async (role) => {
  const alice = await attacked(role);
  using first = await alice.punched(role, attackMs);
  const proof = first.proof();
  first.cut();
  await alice.scene.house.hears("failed", ({ token }) => token === first.token);
  using link = await alice.punched(role, attackMs);
  await flight(link, () => lineOf(link, proof));
  await expectNothing(alice, link);
});

test.each(roles)(
  "who has the words, and proves it on this connection, is linked as %s side",
  async (role) => {
    const alice = await attacked(role);
    using link = await alice.punched(role);
    await link.begin();
    await alice.scene.bob.next("linked", ({ name }) => name === alice.name);
  },
);

// --- the key of a run ----------------------------------------------------------------------------------------

const seals: Record<string, (alice: Stolen) => void> = {
  "is sealed without the words": (alice) =>
    alice.run((publicKey) => runSeal(lobbyKey, publicKey, alice.line as never)),
  "bears the seal of alice's own": (alice) => {
    let seal = "";
    alice.run((publicKey) => (seal = runSeal(room.key, publicKey, alice.line as never)));
    alice.run(() => seal);
  },
  "is sealed for another run": (alice) =>
    alice.run((publicKey) => runSeal(room.key, publicKey, { ...alice.line, instance: hex(8) } as never)),
  "says nothing": (alice) => alice.run(() => ""),
};
const runs = Object.keys(seals).flatMap((what) => roles.map((role) => [what, role] as const));

test.each(runs)("nobody is linked by a key of a run that %s, as %s side", async (what, role) => {
  const alice = await attacked(role);
  seals[what]!(alice);
  using link = await alice.punched(role, attackMs);
  link.bond.key = lobbyKey;
  await flight(link, () => lineOf(link, link.proof()), openFrame(link.firstStream, { use: "lines" }));
  await expectNothing(alice, link);
});

test.each(roles)("alice's certificate behind another's does not make that hers, as %s side", async (role) => {
  const alice = await attacked(role);
  const other = makeIdentity();
  alice.shows = { ...other, certificate: other.certificate + alice.identity.certificate };
  const link = await alice.tried(role, attackMs); // bob closes it at once: for us TLS may be up by then, or not
  await alice.scene.bob.next("failed", ({ name }) => name === alice.name);
  link?.[Symbol.dispose]();
  expect(alice.count("linked")).toBe(0);
});

test("who asks has the link as soon as TLS has shown the other's key, which the room's words have sealed", async () => {
  await using scene = await Scene.open();
  const { alice } = scene;
  alice.run((publicKey) => runSeal(room.key, publicKey, alice.line as never));
  using link = await alice.punched("controlled");
  expect(await scene.bob.next("linked")).toMatchObject({ name: "alice" }); // and we have said nothing yet
  await link.hears(frame.ping); // nor has bob waited for it
  await link.begin();
  scene.bob.type("say alice hello");
  const { stream } = await link.hears(frame.open);
  await link.reads(stream, '"text":"hello"');
});

// --- a link that is there ------------------------------------------------------------------------------------

test("who knows the id of a session does not go on with it without the words", async () => {
  await using scene = await Scene.open();
  const { alice, bob } = scene;
  using honest = await alice.punched("controlling");
  await honest.begin();
  await bob.next("linked");
  const { sessionId, processed } = honest;
  honest.cut();
  await bob.next("broken");
  using thief = await alice.punched("controlling");
  thief.bond.key = lobbyKey;
  const hello = { sessionId, status: 0, epoch: 2, processed };
  thief.send(thief.nominationLine(), helloFrame(frame.resume, hello));
  await thief.frames.over();
  expect(thief.frames.all).toEqual([]);
  using again = await alice.punched("controlling");
  again.send(again.nominationLine(), helloFrame(frame.resume, hello));
  expect(readHello((await again.hears(frame.resumed)).payload)).toMatchObject({ status: 0, sessionId });
  await bob.next("moved");
  expect([bob.count("linked"), bob.count("moved"), bob.count("unlinked")]).toEqual([1, 1, 0]);
});

test("what an earlier run of the peer has shown does not end the link", async () => {
  await using scene = await Scene.open();
  const { bob, house, control, alice } = scene;
  using honest = await alice.punched("controlling");
  await honest.begin();
  await bob.next("linked");
  const { sessionId, processed } = honest;
  control.say({ type: "left", id: alice.line.id });
  await bob.next("left");
  honest.cut();
  await bob.next("broken");
  const replayed = alice.listed({ id: 7, instance: "00".repeat(8) });
  control.say({ type: "joined", peer: replayed });
  await bob.next("joined", ({ peer }) => peer === 7);
  // Bob asks that one, which can't prove to be alice.
  await house.hears("connect", ({ peer }) => peer === 7);
  const token = hex(16);
  control.say(punchLine(replayed, { role: "controlling", token, deadlineMs: linkMs }));
  const thieves = { identity: alice.identity, name: "alice", instance: "00".repeat(8) };
  using thief = await RawLink.punch(punchLine(scene.shownBob, { role: "controlled", token }), thieves);
  await thief.nomination.promise;
  const refusal = helloFrame(frame.resumed, { status: 1, epoch: 2, sessionId });
  thief.send(thief.answerLine(), refusal);
  await thief.frames.over();
  control.say({ type: "joined", peer: alice.line });
  using again = await alice.punched("controlling");
  again.send(again.nominationLine(), helloFrame(frame.resume, { sessionId, status: 0, epoch: 3, processed }));
  await bob.next("moved");
  expect(bob.count("unlinked")).toBe(0);
});

test("nobody is linked with himself by what he has shown", async () => {
  await using scene = await Scene.open();
  const { bob, control, register } = scene;
  const mirrored = { ...scene.shownBob, id: 9, proof: register.proof };
  control.say({ type: "joined", peer: mirrored });
  for (const role of roles) control.say(punchLine(mirrored, { role, deadlineMs: 600 }));
  control.say({ type: "joined", peer: scene.alice.listed({ id: 10, name: "carol", instance: hex(8) }) });
  await bob.next("joined", ({ peer }) => peer === 10);
  bob.type("connect 9");
  expect((await bob.next("error")).message).toContain("nobody here is called 9");
  expect([bob.count("joined"), bob.count("punching")]).toEqual([1, 0]);
});

// --- a lobby and a private room ------------------------------------------------------------------------------

test.each(roles)(
  "a program in the lobby is not crossed with one in a private room, as %s side",
  async (role) => {
    const visitors = new Map<string, { line: Line; visitor: LineSocket }>();
    using house = await LyingIntroducer.listen((line, visitor) => {
      if (line.type !== "register") return;
      visitors.set(`${line.name} in ${line.room === "lobby" ? "the lobby" : "private"}`, { line, visitor });
      visitor.say(registered(line, { public: endpointOf(visitor) }), peersLine());
    });
    // Alice runs both, with one certificate.
    await using inLobby = new Driven(house.port, "alice", "--no-portmap");
    await inLobby.registered;
    await using inPrivate = new Driven(house.port, "alice", "--no-portmap", "--room", words);
    await using bob = new Driven(house.port, "bob", "--no-portmap", "--room", words);
    await Promise.all([inPrivate.registered, bob.registered]);
    const shown = (who: string, lie: object): Line => {
      const { name, fingerprint, instance, proof } = visitors.get(who)!.line;
      return peerLine({ name, fingerprint, proof, instance: shownInstance(instance), ...lie });
    };
    const [atLobby, atBob] = [
      visitors.get("alice in the lobby")!.visitor,
      visitors.get("bob in private")!.visitor,
    ];
    const alice = shown("alice in private", {
      id: 2,
      public: endpointOf(atLobby),
      private: [endpointOf(atLobby)],
    });
    const asBob = shown("bob in private", { id: 2, public: endpointOf(atBob), private: [endpointOf(atBob)] });
    atLobby.say({ type: "joined", peer: asBob });
    atBob.say({ type: "joined", peer: alice });
    await Promise.all([inLobby.next("joined"), bob.next("joined")]);
    const [asker, asked] = role === "controlling" ? [bob, inLobby] : [inLobby, bob];
    asker.type(`connect ${asked.name}`);
    await house.hears("connect");
    const token = hex(16);
    atBob.say(punchLine(alice, { role, token, deadlineMs: 600 }));
    atLobby.say(punchLine(asBob, { role: otherRole(role), token, deadlineMs: 600 }));
    await Promise.all([bob.next("failed"), inLobby.next("failed")]);
    expect([bob.count("linked"), inLobby.count("linked")]).toEqual([0, 0]);
  },
);

test("a thief of identity.pem has what alice's program had", async () => {
  await using scene = await Scene.open();
  const { fingerprint } = loadIdentity(join(homeOf("bob"), "tcp-hole-punching"));
  expect(scene.register.fingerprint).toBe(fingerprint);
  expect(scene.alice.line.proof).toBe(memberProof(room.key, scene.alice.line as never));
});
