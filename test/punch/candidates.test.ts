/** What a round dials. */
import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { Allowance } from "../../native/punch/allowance.ts";
import type { Standing, StandingAddress } from "../../native/host/interfaces.ts";
import { drawPorts, hostCandidates, type Round, roundCandidates } from "../../native/punch/candidates.ts";
import type { Candidate } from "../../native/punch/dial.ts";
import {
  birthdayPorts,
  birthdaySockets,
  type Endpoint,
  formatEndpoint,
  mappings,
  maxCandidates,
  parseEndpoint,
  type Peer,
  predictedPorts,
  type Prediction,
  type Situation,
  splitEndpoint,
  type Way,
  ways,
} from "../../protocol.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

function at(text: string): Endpoint {
  const parsed = parseEndpoint(text);
  if (parsed === undefined) throw new Error(`not an endpoint: ${text}`);
  return parsed;
}

const ownPublic = at("198.51.100.7:40000");
const peerPublic = at("203.0.113.7:50000");
const peerHost = at("192.168.1.5:41000");
const ownPrediction: Prediction = { endpoint: at("198.51.100.7:42000"), step: 1 };
const peerPrediction: Prediction = { endpoint: at("203.0.113.7:52000"), step: 2 };

interface Changes extends Partial<Omit<Round, "own" | "peer">> {
  own?: Partial<Situation>;
  peer?: Partial<Peer>;
}

function round(way: Way, { own, peer, ...changes }: Changes = {}): Round {
  const kept = { mapping: "endpoint-independent" } as const;
  return {
    way,
    own: { ...kept, private: [at("10.0.0.4:40000")], public: ownPublic, ...own },
    introducer: at("127.0.0.1:7000"),
    peer: {
      id: 2,
      name: "bob",
      instance: "0".repeat(16),
      fingerprint: "0".repeat(64),
      since: 0,
      ...kept,
      private: [peerHost],
      public: peerPublic,
      ...peer,
    },
    ours: new Set([at("10.0.0.4:40000"), ownPublic]),
    hosts: [{ address: "10.0.0.4", prefixBits: 24 }],
    allowance: new Allowance(),
    budget: 1000,
    ...changes,
  };
}

const mapped = at("203.0.113.7:50001");
const mappedAt = (endpoint: Endpoint) => round("direct", { peer: { mapped: endpoint } });
const observed: Candidate = { endpoint: peerPublic, route: "public" };
const host: Candidate = { endpoint: peerHost, route: "private", tries: { left: 6 } };
const sequential = { mapping: "sequential" } as const;
const random = { mapping: "random" } as const;
const portsOf = (candidates: Candidate[]) => candidates.map(({ endpoint }) => splitEndpoint(endpoint).port);
const birthdays = (candidates: Candidate[]) => candidates.filter(({ route }) => route === "birthday");

// --- every way -------------------------------------------------------------------------------------------

test.each<[what: string, Round, expected: Candidate[]]>([
  ["direct: the endpoint that was seen", round("direct"), [observed, host]],
  ["direct: no prediction is used", round("direct", { ownPrediction, peerPrediction }), [observed, host]],
  [
    "direct: the port that the peer's router has opened, too",
    round("direct", { peer: { mapped } }),
    [observed, { endpoint: mapped, route: "mapped" }, host],
  ],
  [
    "predicted: the same, after the ports that come next",
    round("predicted", { own: sequential, ownPrediction, peer: { mapped } }),
    [
      { endpoint: peerPublic, route: "predicted", isFresh: true },
      { endpoint: mapped, route: "mapped", afterMs: 30 },
      { ...host, afterMs: 30 },
    ],
  ],
  ["a mapped port that is the observed one is dialled once", mappedAt(peerPublic), [observed, host]],
  ["a mapped port elsewhere is not dialled", mappedAt(at("203.0.113.8:50001")), [observed, host]],
  [
    "a mapped port where the peer was seen by its other family is",
    round("direct", { peer: { public: at("[2001:db8::7]:50000"), otherPublic: peerPublic, mapped } }),
    [
      { endpoint: at("[2001:db8::7]:50000"), route: "public" },
      { endpoint: mapped, route: "mapped" },
      { endpoint: peerPublic, route: "public" },
      host,
    ],
  ],
  [
    "fresh: no mapped port, for another one is listened on",
    round("fresh", { peerPrediction, peer: { mapped } }),
    [{ endpoint: peerPrediction.endpoint, route: "public" }, host],
  ],
  ["direct, unknown mappings", round("direct", { peer: { mapping: "unknown" } }), [observed, host]],
  [
    "fresh: what the peer has just measured",
    round("fresh", { ownPrediction, peerPrediction: { ...peerPrediction, step: 0 } }),
    [{ endpoint: peerPrediction.endpoint, route: "public" }, host],
  ],
  ["fresh, which the peer could not measure", round("fresh", { ownPrediction }), [observed, host]],
  ["predicted, which nobody could measure", round("predicted"), [observed, host]],
  [
    "predicted, by the side with the sequential NAT",
    round("predicted", { own: sequential, ownPrediction }),
    [
      { endpoint: peerPublic, route: "predicted", isFresh: true },
      { ...host, afterMs: 30 },
    ],
  ],
  [
    "predicted, by the other side: the ports that come next",
    round("predicted", { peer: sequential, peerPrediction }),
    [
      ...Array.from({ length: predictedPorts }, (_, index): Candidate => ({
        endpoint: formatEndpoint("203.0.113.7", 52002 + 2 * index),
        route: "predicted",
      })),
      host,
    ],
  ],
  [
    "predicted, both sequential: one port of the peer's, from many of ours",
    round("predicted", { own: sequential, peer: sequential, ownPrediction, peerPrediction }),
    [
      ...Array<Candidate>(predictedPorts).fill({
        endpoint: formatEndpoint("203.0.113.7", 52000 + 2 * predictedPorts),
        route: "predicted",
        isFresh: true,
        isOnce: true,
      }),
      { ...host, afterMs: 30 },
    ],
  ],
  [
    "predicted, though neither seems to count: each may after all",
    round("predicted", { ownPrediction, peerPrediction }),
    [
      { endpoint: peerPublic, route: "predicted", isFresh: true },
      ...Array.from({ length: predictedPorts }, (_, index): Candidate => ({
        endpoint: formatEndpoint("203.0.113.7", 52002 + 2 * index),
        route: "predicted",
      })),
      host,
    ],
  ],
  ["birthday, though nobody's NAT is random", round("birthday"), [observed, host]],
])("%s", (_what, given, expected) => {
  expect(roundCandidates(given)).toEqual(expected);
});

test("both sides of a sequential pair dial the port that the other one's sockets reach", () => {
  const [a, b] = [ownPrediction, peerPrediction];
  const target = (own: Prediction, peer: Prediction) =>
    portsOf(
      roundCandidates(
        round("predicted", {
          own: sequential,
          ownPrediction: own,
          peerPrediction: peer,
          peer: { ...sequential, private: [], public: peer.endpoint },
        }),
      ),
    )[0]!;
  const reached = ({ endpoint, step }: Prediction) =>
    Array.from({ length: predictedPorts }, (_, index) => splitEndpoint(endpoint).port + step * (index + 1));
  expect([reached(b).includes(target(a, b)), reached(a).includes(target(b, a))]).toEqual([true, true]);
});

describe("a birthday", () => {
  test.each([random, sequential])("of the %o side: many fresh ports at the one endpoint", (own) => {
    const all = roundCandidates(round("birthday", { own }));
    const many = birthdays(all);
    expect(many.length).toBe(birthdaySockets);
    expect(all.length).toBe(birthdaySockets + 1); // and the host candidate
    for (const { afterMs: _, ...candidate } of many) {
      expect(candidate).toEqual({ endpoint: peerPublic, route: "birthday", isFresh: true, isOnce: true });
    }
  });

  test.each([random, sequential])("against a %o side: as many different ports of one address", (peer) => {
    const draws = Array.from({ length: 5 }, () => birthdays(roundCandidates(round("birthday", { peer }))));
    for (const drawn of draws) {
      expect(new Set(drawn.map(({ endpoint }) => splitEndpoint(endpoint).address))).toEqual(
        new Set(["203.0.113.7"]),
      );
      const ports = portsOf(drawn);
      expect([ports.length, new Set(ports).size]).toEqual([birthdaySockets, birthdaySockets]);
      expect(Math.min(...ports)).toBeGreaterThanOrEqual(birthdayPorts.first);
      expect(Math.max(...ports)).toBeLessThanOrEqual(birthdayPorts.last);
      expect(drawn.every(({ isOnce, isFresh }) => isOnce && !isFresh)).toBe(true);
    }
    expect(new Set(draws.map((drawn) => portsOf(drawn).join())).size).toBe(5); // never the same guesses
  });

  test.each([{ own: random }, { peer: random }])("of %o is spread over time, in order", (changes) => {
    const times = birthdays(roundCandidates(round("birthday", changes))).map(({ afterMs }) => afterMs ?? -1);
    expect(times).toEqual(times.toSorted((a, b) => a - b));
    expect([times[0], times.at(-1)! > 0]).toEqual([0, true]);
    const batches = Map.groupBy(times, (time) => time);
    expect(Math.max(...[...batches.values()].map((batch) => batch.length))).toBeLessThanOrEqual(24);
  });
});

test("ports are drawn without repetition, and all can come", () => {
  const all = birthdayPorts.last - birthdayPorts.first + 1;
  expect(drawPorts(0)).toEqual([]);
  const drawn = drawPorts(all).toSorted((a, b) => a - b);
  expect([drawn.length, drawn[0], drawn.at(-1)]).toEqual([all, birthdayPorts.first, birthdayPorts.last]);
  expect(new Set(drawn).size).toBe(all);
});

// --- host candidates -------------------------------------------------------------------------------------

test("of the peer's host candidates only those are dialled that can be its own, and never ours", () => {
  const ipv6 = at("[2001:db8::5]:41000");
  const privates = [
    peerHost,
    at("10.0.0.4:40000"), // ours
    ownPublic, // ours, as others see us: behind one NAT a peer may name it
    at("8.8.8.8:53"), // a third party's
    at("203.0.113.7:51000"), // another port of the peer's public address
    at("127.0.0.1:41000"),
    peerPublic, // dialled already
    at("[fd00::5]:41000"),
    ipv6,
  ];
  const peer = { private: privates };
  expect(roundCandidates(round("direct", { peer }))).toEqual([
    observed,
    host,
    { endpoint: at("203.0.113.7:51000"), route: "public" },
    { endpoint: at("[fd00::5]:41000"), route: "private", tries: { left: 6 } },
    { endpoint: ipv6, route: "public", tries: { left: 6 } },
  ]);
});

test("our own public endpoint is never dialled, whoever claims it", () => {
  for (const way of ways) {
    const claimed = { public: ownPublic, private: [ownPublic] };
    const dialled = roundCandidates(round(way, { peer: claimed })).map(({ endpoint }) => endpoint);
    expect(dialled).toEqual([]);
  }
});

test("loopback is dialled only over loopback", () => {
  const peer = { public: at("127.0.0.1:50000"), private: [at("127.0.0.1:41000")] };
  expect(roundCandidates(round("direct", { peer }))).toEqual([]);
  const own = { public: at("127.0.0.1:40000") };
  expect(roundCandidates(round("direct", { own, peer }))).toEqual([
    { endpoint: at("127.0.0.1:50000"), route: "public" },
    { endpoint: at("127.0.0.1:41000"), route: "public" },
  ]);
});

test.each([
  "224.0.0.1:5000",
  "0.0.0.0:5000",
  "127.0.0.1:5000",
  "255.255.255.255:5000",
  "198.51.100.99:5000",
  "[2001:db8::9]:5000",
])("a prediction at %s, which is not the peer's, is not dialled", (text) => {
  const forged: Prediction = { endpoint: at(text), step: 1 };
  for (const way of ["fresh", "predicted"] as const) {
    for (const changes of [{}, { ownPrediction }]) {
      const all = roundCandidates(round(way, { ...changes, peerPrediction: forged }));
      const addresses = new Set(all.map(({ endpoint }) => splitEndpoint(endpoint).address));
      expect(addresses).toEqual(new Set(["203.0.113.7", "192.168.1.5"]));
    }
  }
});

// --- what only the peer vouches for ------------------------------------------------------------------------

describe("what an introducer out in the Internet says that it has seen", () => {
  const far = { introducer: at("192.0.2.1:7000") };

  test.each([["192.168.1.9:8080"], ["10.0.0.9:8080"], ["[fd00::9]:8080"], ["[64:ff9b::c0a8:109]:8080"]])(
    "%s: is only claimed, however it is told",
    (text) => {
      const victim = at(text);
      for (const way of ways) {
        for (const mapping of mappings) {
          const prediction = { ownPrediction, peerPrediction: { endpoint: victim, step: 1 } };
          const there = { mapping, public: victim, otherPublic: victim, mapped: victim, private: [victim] };
          const dialled = roundCandidates(round(way, { ...far, ...prediction, peer: there }));
          expect(dialled).toEqual([{ endpoint: victim, route: "private", tries: { left: 6 } }]);
        }
      }
    },
  );

  test.each([
    ["127.0.0.1:8080"],
    ["[::1]:8080"],
    ["[64:ff9b::7f00:1]:8080"],
    ["[2002:7f00:1::]:8080"],
    ["198.51.100.9:25"],
    ["[2001:db8::9]:22"],
  ])("%s: is never dialled", (text) => {
    const victim = at(text);
    // Nor by one who says that we are on loopback ourselves.
    for (const observed of [ownPublic, at("127.0.0.1:40000")]) {
      for (const way of ["direct", "predicted", "fresh"] as const) {
        const there = { public: victim, otherPublic: victim, mapped: victim, private: [victim] };
        expect(roundCandidates(round(way, { ...far, own: { public: observed }, peer: there }))).toEqual([]);
      }
    }
  });
});

describe("an endpoint at which the introducer has not seen the peer", () => {
  const triesOf = (given: Round) => roundCandidates(given).flatMap(({ tries }) => tries ?? []);
  const victims = Array.from({ length: 10 }, (_, n) => at(`[2001:db8::${n + 1}]:4430`));

  test("global: all of them share six attempts, through all rounds", () => {
    const allowance = new Allowance();
    const rounds = ways.map((way) => triesOf(round(way, { allowance, peer: { private: victims } })));
    expect(rounds.map((tries) => tries.length)).toEqual([10, 10, 10, 10]);
    expect(new Set(rounds.flat())).toEqual(new Set([{ left: 6 }]));
    expect(new Set(rounds.flat()).size).toBe(1);
  });

  test("that it was seen at is dialled without such bounds, in every way", () => {
    const otherPublic = at("[2001:db8::1]:41000");
    for (const way of ways) {
      for (const changes of [{ own: random }, { peer: random }, {}]) {
        const peer = { ...changes.peer, private: [otherPublic], otherPublic };
        const dialled = roundCandidates(round(way, { ...changes, peer }));
        const there = dialled.filter(({ endpoint }) => endpoint === otherPublic);
        expect(there).toEqual([{ endpoint: otherPublic, route: "public" }]);
      }
    }
  });

  test("IPv4, where the introducer sees the peer by IPv6 and has seen it there too", () => {
    const peer = { public: at("[2001:db8::1]:41000"), private: [peerPublic] };
    expect(roundCandidates(round("direct", { peer })).length).toBe(1); // anybody's
    const proven = { ...peer, otherPublic: peerPublic };
    expect(roundCandidates(round("direct", { peer: proven }))).toEqual([
      { endpoint: peer.public, route: "public" },
      observed,
    ]);
  });

  test("private: no port below 1024, and six attempts each, through all rounds", () => {
    const allowance = new Allowance();
    const peer = {
      private: [at("192.168.1.5:22"), at("192.168.1.5:1023"), at("192.168.1.5:1024"), peerHost],
    };
    for (const way of ways) {
      const tries = roundCandidates(round(way, { allowance, peer })).filter(({ tries }) => tries);
      expect(tries.map(({ endpoint }) => endpoint)).toEqual([at("192.168.1.5:1024"), peerHost]);
      for (const one of tries) one.tries!.left--;
    }
    expect(triesOf(round("direct", { allowance, peer }))).toEqual([{ left: 2 }, { left: 2 }]);
  });

  test("private: those that we have ourselves come last, for they lead to our own host", () => {
    const hosts = ["10.0.0.4", "172.17.0.1"].map((address) => ({ address, prefixBits: 16 }));
    const peers = [at("172.17.0.1:8080"), at("10.0.0.9:8080")];
    const dialled = roundCandidates(round("direct", { hosts, peer: { private: peers } })).slice(1);
    expect(dialled.map(({ endpoint }) => endpoint)).toEqual([peers[1]!, peers[0]!]);
  });

  test("private: four addresses beyond our own links, all on them; no scan in many rounds", () => {
    const allowance = new Allowance();
    const scan = (third: number) =>
      Array.from({ length: 10 }, (_, n) => at(`192.168.${third}.${n + 1}:8080`));
    const dialled = (peers: Endpoint[]) =>
      roundCandidates(round("direct", { allowance, peer: { private: peers } })).slice(1);
    expect(dialled(scan(1)).map(({ endpoint }) => endpoint)).toEqual(scan(1).slice(0, 4));
    expect(dialled(scan(2))).toEqual([]);
    const near = Array.from({ length: 10 }, (_, n) => at(`10.0.0.${n + 10}:8080`));
    expect(dialled(near).map(({ endpoint }) => endpoint)).toEqual(near.slice(0, maxCandidates - 4));
    expect(dialled(scan(3))).toEqual([]);
  });
});

// --- our own ---------------------------------------------------------------------------------------------

const standing = (one: Standing, ...addresses: string[]): StandingAddress[] =>
  addresses.map((address) => ({ address, prefixBits: 24, device: "eth0", standing: one }));
const offered = (inUse: string | undefined, ...hosts: StandingAddress[][]) =>
  hostCandidates(inUse, 1, false, hosts.flat()).map((endpoint) => splitEndpoint(endpoint).address);

test("our host candidates: the address in use first, none that a peer cannot use", () => {
  const hosts = standing("ordinary", "127.0.0.1", "192.168.1.4", "2001:db8::4");
  expect(hostCandidates("2001:db8::4", 40000, false, hosts)).toEqual([
    at("[2001:db8::4]:40000"),
    at("192.168.1.4:40000"),
  ]);
  expect(hostCandidates("127.0.0.1", 40000, true, hosts)[0]).toBe(at("127.0.0.1:40000"));
  expect(hostCandidates("127.0.0.1", 40000, false, hosts).length).toBe(2);
});

test("our host candidates: IPv6 and IPv4 in turn, global ones before others, those with a default route first", () => {
  const wlan = standing("routed", "192.168.1.4", "fd00::4", "10.7.0.4", "2001:db8::4", "2001:db8::5");
  const vpn = standing("ordinary", "10.8.0.2", "fd08::2");
  const expected = [
    "10.7.0.4",
    "2001:db8::4",
    "192.168.1.4",
    "2001:db8::5",
    "fd00::4",
    "fd08::2",
    "10.8.0.2",
  ];
  expect(offered("10.7.0.4", vpn, wlan)).toEqual(expected);
});

test("our host candidates: no more than others take, and bridges push out nothing of use", () => {
  const docker = Array.from({ length: 12 }, (_, n) => `172.${n + 17}.0.1`);
  const useful = ["192.168.1.4", "2001:db8::4", "10.8.0.2"];
  const [wlan, vpn] = [standing("routed", useful[0]!, useful[1]!), standing("ordinary", useful[2]!)];
  for (const kind of ["bridge", "idle"] as const) {
    const all = offered("192.168.1.4", standing(kind, ...docker), vpn, wlan);
    expect(all).toHaveLength(maxCandidates);
    expect(all.slice(0, 3)).toEqual(useful);
  }
  const both = offered(undefined, standing("idle", "172.17.0.1"), standing("bridge", "172.18.0.1"));
  expect(both).toEqual(["172.18.0.1", "172.17.0.1"]);
});

// --- bounds ----------------------------------------------------------------------------------------------

const hosts = (count: number) =>
  Array.from({ length: count }, (_, n) => formatEndpoint(`10.1.0.${n + 1}`, 5000));

test.each([0, 1, 12, 100, 600])("a budget of %i bounds the sockets, what matters most first", (budget) => {
  for (const changes of [{ own: random }, { peer: random }]) {
    const peer = { ...changes.peer, private: hosts(3) };
    const all = roundCandidates(round("birthday", { ...changes, peer, budget }));
    expect(all.length).toBe(Math.min(Math.max(budget, 4), birthdaySockets + 3));
    expect(all[0]!.route).toBe("birthday");
  }
});

test("towards one address there are never more sockets than a birthday's, whatever the message says", () => {
  for (const way of ways) {
    for (const own of mappings) {
      for (const peer of mappings) {
        for (const step of [-4096, -1, 0, 1, 256, 4096]) {
          const given = round(way, {
            own: { mapping: own },
            peer: { mapping: peer, private: Array<Endpoint>(maxCandidates).fill(at("203.0.113.7:9")) },
            ownPrediction: { endpoint: ownPrediction.endpoint, step },
            peerPrediction: { endpoint: at("203.0.113.7:65535"), step },
          });
          const all = roundCandidates(given);
          const most = way === "birthday" ? birthdaySockets : way === "predicted" ? predictedPorts : 1;
          expect(all.length).toBeLessThanOrEqual(most + maxCandidates);
        }
      }
    }
  }
});
