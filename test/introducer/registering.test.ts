/** Who registers, what the room hears of it, names, links that a participant has already, and notices. */
import { expect, setDefaultTimeout, test } from "bun:test";
import { at, Client, fingerprint, hash, linkedBy, registration } from "../client-fixture.ts";
import { encode, maxLineBytes, maxReportedLinks, type ToIntroducer } from "../../protocol.ts";
import { isLinux, introduce, maps, failOnce, linkOnce, linksOf } from "./introducer-fixture.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

/** Registers and never looks at what comes; the introducer's end closes it. */
async function joinAndIgnore(port: number, message: ToIntroducer): Promise<void> {
  const answered = Promise.withResolvers<void>();
  const socket = await Bun.connect({
    hostname: "127.0.0.1",
    port,
    socket: { data: () => answered.resolve() },
  });
  socket.write(encode(message));
  await answered.promise;
}

test("register is answered by registered and the others; they learn of it by joined", async () => {
  await using scene = introduce();
  using anna = await scene.join("anna", "lobby", false);
  using bert = new Client(scene.introducer.port);
  bert.answersPings = false; // so that no round trip is known yet
  bert.send({ ...registration("bert"), private: [at("10.0.0.2:5"), at("10.0.0.2:5"), at("8.8.8.8:53")] });
  const registered = await bert.next("registered");
  const peers = await bert.next("peers");
  const joined = await anna.next("joined");
  const own = { id: 2, name: "bert", private: ["10.0.0.2:5"], public: bert.endpoint };
  const { probePorts } = scene.introducer;
  const roundTripMs = isLinux && { roundTripMs: expect.any(Number) };
  expect<unknown>(registered).toEqual({
    type: "registered",
    ...own,
    ...roundTripMs,
    room: "lobby",
    probePorts,
    alternates: [],
    probeToken: expect.stringMatching(/^[0-9a-f]{32}$/),
  });
  const rest = { fingerprint, mapping: "unknown", since: expect.any(Number), ...roundTripMs };
  const annaAsPeer = {
    id: 1,
    name: "anna",
    instance: hash(hash("anna")),
    private: ["192.168.1.5:40000"],
    public: anna.endpoint,
    ...rest,
  };
  expect<unknown>(peers).toEqual({ type: "peers", peers: [annaAsPeer], more: false });
  expect<unknown>(joined).toEqual({
    type: "joined",
    peer: { ...own, instance: hash(hash("bert")), ...rest },
  });
  expect(await scene.happened("ignored")).toMatchObject({ endpoints: ["8.8.8.8:53"] });
  bert.end();
  expect(await anna.next("left")).toEqual({ type: "left", id: 2 });
});

test("ids are never used again", async () => {
  await using scene = introduce();
  for (const id of [1, 2, 3]) {
    using client = await scene.join("anna");
    expect(client.id).toBe(id);
  }
});

test("rooms don't see each other", async () => {
  await using scene = introduce();
  using anna = await scene.join("anna", "red");
  using bert = await scene.join("bert", "blue");
  anna.send({ type: "connect", peer: bert.id });
  expect(await anna.next("refused")).toMatchObject({
    code: "unknown-peer",
    request: "connect",
    peer: bert.id,
  });
  await bert.settled();
  expect([anna.types(), bert.types()]).toEqual([
    ["registered", "peers", "refused"],
    ["registered", "peers", "echo"],
  ]);
});

test("a full room's snapshot comes in lines of at most 64 KiB, and one more is refused", async () => {
  await using scene = introduce();
  const host = (n: number) => at(`[fd00:1111:2222:3333:4444:5555:6666:${1000 + n}]:40000`);
  const candidates = Array.from({ length: 10 }, (_, n) => host(n));
  for (let n = 0; n < 255; n++) {
    await joinAndIgnore(scene.introducer.port, {
      ...registration(`n${n}${"ö".repeat(50)}`),
      fingerprint: n.toString(16).padStart(64, "0"), // or they would be asked whether they are there
      private: candidates,
    });
  }
  using last = await scene.join("last");
  using late = new Client(scene.introducer.port);
  late.send(registration("late"));
  expect(await late.next("refused")).toMatchObject({ code: "limit", request: "register" });
  const lines = last.seen.filter((message) => message.type === "peers");
  expect(lines.length).toBeGreaterThan(1);
  expect(lines.map(({ more }) => more)).toEqual(lines.map((line) => line !== lines.at(-1)));
  expect(Math.max(...lines.map((line) => Buffer.byteLength(encode(line))))).toBeLessThanOrEqual(maxLineBytes);
  expect(lines.flatMap(({ peers }) => peers.map(({ id }) => id))).toEqual(
    Array.from({ length: 255 }, (_, n) => n + 1),
  );
});

test("tell and broadcast arrive as notices", async () => {
  await using scene = introduce();
  using anna = await scene.join("anna");
  using bert = await scene.join("bert", "elsewhere");
  expect(await scene.introducer.tell("psst", anna.id)).toBe(true);
  expect(await scene.introducer.tell("psst", 99)).toBe(false);
  expect(await scene.introducer.broadcast("all")).toBe(2);
  expect([await anna.next("notice"), await anna.next("notice"), await bert.next("notice")]).toMatchObject([
    { text: "psst" },
    { text: "all" },
    { text: "all" },
  ]);
});

test("how a participant's NAT maps is told to the room", async () => {
  await using scene = introduce();
  using anna = await scene.join("anna");
  using bert = await scene.join("bert");
  await maps(bert, "sequential");
  expect(
    await anna.next("updated", ({ id, mapping }) => id === bert.id && mapping !== undefined),
  ).toMatchObject({ mapping: "sequential" });
  using carl = await scene.join("carl");
  const [peers] = carl.seen.filter((message) => message.type === "peers");
  expect(peers?.peers.map(({ mapping }) => mapping)).toEqual(["unknown", "sequential"]);
  expect(scene.events).toContainEqual({ event: "mapping", id: bert.id, mapping: "sequential" });
});

test("a mapped port is told to the room, and that it is closed again; one of another address is refused", async () => {
  await using scene = introduce();
  using anna = await scene.join("anna", "lobby", false);
  using bert = await scene.join("bert", "lobby", false);
  const { id } = bert;
  const mapped = at("127.0.0.1:41000");
  bert.send({ type: "mapped", endpoint: mapped });
  expect(await anna.next("updated")).toEqual({ type: "updated", id, mapped });
  using carl = await scene.join("carl");
  const [peers] = carl.seen.filter((message) => message.type === "peers");
  expect(peers?.peers.map((peer) => peer.mapped)).toEqual([undefined, mapped]);

  bert.send({ type: "mapped", endpoint: at("127.0.0.2:41000") });
  expect(await bert.next("refused")).toMatchObject({ code: "bad-field", request: "mapped" });
  bert.send({ type: "mapped", endpoint: mapped }); // nothing new
  bert.send({ type: "mapped" });
  expect(await anna.next("updated")).toEqual({ type: "updated", id, mapped: null });
  expect(scene.introducer.participants.map((one) => one.mapped)).toEqual([undefined, undefined, undefined]);
  expect(scene.events.filter(({ event }) => event === "mapped")).toEqual([
    { event: "mapped", id, endpoint: mapped },
    { event: "mapped", id },
  ]);
});

test("the room hears of a change in what it needs to punch, as the changed fields, and of nothing else", async () => {
  await using scene = introduce();
  using carl = await scene.join("carl", "lobby", false);
  using anna = await scene.join("anna", "lobby", false);
  using bert = await scene.join("bert", "lobby", false);
  await linkOnce(anna, bert);
  await failOnce(anna, bert);
  await maps(anna, "random");
  const updated = await carl.next("updated");
  expect(updated).toEqual({ type: "updated", id: anna.id, mapping: "random" });
  await carl.settled();
  expect(carl.types()).toEqual(["registered", "peers", "joined", "joined", "updated", "echo"]);
});

test("the links that a participant has when it registers are listed under its peers' present ids", async () => {
  await using scene = introduce();
  using anna = new Client(scene.introducer.port);
  const links = [
    { peer: hash(hash("bert")), route: "birthday" as const },
    { peer: hash(hash("gone")), route: "public" as const },
  ];
  anna.send({ ...registration("anna"), links });
  await anna.next("registered");
  expect(linksOf(scene)).toEqual({ anna: [] });
  const comesBack = async () => {
    const bert = new Client(scene.introducer.port);
    bert.send({ ...registration("bert"), links: [{ peer: hash(hash("anna")), route: "birthday" }] });
    return Object.assign(bert, await bert.next("registered"));
  };
  {
    using stranger = await scene.join("bert"); // who does not say so
    expect(linksOf(scene)).toEqual({ anna: [], bert: [] });
    await stranger.settled();
  }
  {
    using bert = await comesBack();
    const link = (id: number) => [{ id, route: "birthday" as const }];
    expect(linksOf(scene)).toEqual({ anna: link(bert.id), bert: link(1) });
    using namesake = await scene.join("gone", "elsewhere");
    expect(linksOf(scene)).toMatchObject({ anna: [{ id: bert.id }], gone: [] });
    await namesake.settled();
  }
  using bert = await comesBack();
  expect(linksOf(scene)["anna"]).toEqual([{ id: bert.id, route: "birthday" }]);
  anna.send({ type: "unlinked", peer: bert.id, reason: "connection-lost" });
  await anna.settled();
  expect(linksOf(scene)["anna"]).toEqual([]);
});

test("a link is told to be over by the id that its peer had when it left", async () => {
  await using scene = introduce();
  using anna = await scene.join("anna");
  {
    using bert = await scene.join("bert");
    anna.send({ type: "connect", peer: bert.id });
    const { token } = await anna.next("punch");
    anna.send({ ...linkedBy(token), peer: bert.id });
    await anna.settled();
  }
  await anna.next("left");
  anna.send({ type: "unlinked", peer: 2, reason: "connection-lost" });
  expect(await scene.happened("unlinked")).toMatchObject({ id: 1, peer: 2 });
  using bert = await scene.join("bert");
  expect(bert.id).toBe(3);
  expect(linksOf(scene)["anna"]).toEqual([]);
});

test("a thousand links in one register are taken, and more are refused", async () => {
  await using scene = introduce();
  const links = Array.from({ length: maxReportedLinks }, (_, n) => ({
    peer: hash(`${n}`),
    route: "public" as const,
  }));
  using anna = new Client(scene.introducer.port);
  anna.send({ ...registration("anna"), links });
  await anna.next("registered");
  using bert = new Client(scene.introducer.port);
  bert.send({ ...registration("bert"), links: [...links, links[0]!] });
  expect(await bert.next("refused")).toMatchObject({
    code: "bad-field",
    message: `links must be a list of at most ${maxReportedLinks} items`,
  });
});

test("who registers anew replaces its old session, even in a full room; its namesake does not", async () => {
  await using scene = introduce({ roomSize: 2 });
  using bert = await scene.join("bert");
  using old = await scene.join("anna");
  using anew = await scene.join("anna");
  expect(await bert.next("left")).toEqual({ type: "left", id: old.id });
  expect(await bert.next("joined", ({ peer }) => peer.id === anew.id)).toBeDefined();
  await old.ended.promise;
  using namesake = new Client(scene.introducer.port);
  namesake.send({ ...registration("anna"), instance: "fedcba9876543210" });
  expect(await namesake.next("refused")).toMatchObject({ code: "limit", request: "register" });
  expect(scene.introducer.participants.map(({ id }) => id)).toEqual([bert.id, anew.id]);
});

test("who was renamed may have the name that it wanted once that is free, and no other", async () => {
  await using scene = introduce();
  using anna = await scene.join("anna");
  using bert = await scene.join("bert-2");
  const proof = "cd".repeat(32);
  {
    using holder = await scene.join("bert");
    bert.send({ type: "rename", name: "bert" });
    expect(await bert.next("refused")).toMatchObject({
      code: "name-taken",
      request: "rename",
    });
    expect(holder.id).toBe(3);
  }
  await bert.next("left");
  for (const name of ["carl", "bert-2", "bert-2-2", "anna"]) {
    bert.send({ type: "rename", name });
    expect(await bert.next("refused")).toMatchObject({ code: "bad-field", request: "rename" });
  }
  bert.send({ type: "rename", name: "bert", proof });
  expect(await bert.next("renamed")).toEqual({ type: "renamed", name: "bert" });
  const isNamed = ({ name }: { name?: string }) => name !== undefined;
  expect(await anna.next("updated", isNamed)).toMatchObject({ id: bert.id, name: "bert", proof });
  expect(await scene.happened("renamed")).toEqual({ event: "renamed", id: 2, name: "bert", was: "bert-2" });
  using later = await scene.join("carl");
  expect(later.id).toBe(4);
  expect(later.seen.find(({ type }) => type === "peers")).toMatchObject({
    peers: [{}, { name: "bert", proof }],
  });
});

test("a name that is kept for who has left is not had by renaming either", async () => {
  await using scene = introduce();
  using bert = await scene.join("bert-2");
  {
    using holder = new Client(scene.introducer.port);
    holder.send({ ...registration("bert"), fingerprint: "ef".repeat(32) });
    await holder.next("registered");
  }
  await bert.next("left");
  bert.send({ type: "rename", name: "bert" });
  expect(await bert.next("refused")).toMatchObject({ code: "name-taken", request: "rename" });
});

test("other addresses of a host are told to the room, if it may offer them and if they are others", async () => {
  await using scene = introduce();
  using anna = await scene.join("anna", "lobby", false);
  using bert = await scene.join("bert", "lobby", false);
  const hosts = [at("192.168.1.5:40000"), at("10.0.0.7:40000")];
  bert.send({ type: "update", private: [hosts[0]!] }); // which is no news
  bert.send({ type: "update", private: [...hosts, at("8.8.8.8:53")] });
  expect(await anna.next("updated")).toEqual({ type: "updated", id: bert.id, private: hosts });
  bert.send({ type: "update", private: [at("127.0.0.1:5")] });
  expect(await bert.next("updated")).toEqual({ type: "updated", id: bert.id, private: hosts });
  await bert.settled();
  expect(anna.types().filter((type) => type === "updated")).toHaveLength(1);
});
