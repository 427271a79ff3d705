/** Every message: its line, its fields, and what is refused. */
import { describe, expect, setDefaultTimeout, test } from "bun:test";
import {
  changedPeer,
  type FailureReason,
  type Peer,
  type RefusalCode,
  type ToIntroducer,
  type ToParticipant,
  type ToPeer,
  type LinkLine,
  encode,
  failureReasons,
  filterings,
  maxCandidates,
  maxLineBytes,
  maxNameLength,
  maxRoomLength,
  maxWants,
  maxTextLength,
  parseToIntroducer,
  parseToParticipant,
  parseToPeer,
  parseLinkLine,
  punchDeadlineMs,
  refusalCodes,
} from "../../protocol.ts";
import { at, refusalOf, utf8, instance, token, fingerprint, bob, bobJson } from "./protocol-fixture.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

/** One object and its line for every variant; a variant without a row is a type error. */
type Golden<Union extends { type: string }> = {
  [T in Union["type"]]: [message: Extract<Union, { type: T }>, line: string][];
};

const failed = {
  type: "failed",
  peer: 2,
  token,
  reason: "no-candidate-answered",
} as const;
const failedJson =
  `{"type":"failed","peer":2,"token":"00112233445566778899aabbccddeeff",` +
  `"reason":"no-candidate-answered"}`;

const onlyRound = { way: "direct", round: 1, last: true, deadlineMs: 10_000 } as const;

const goldenToIntroducer: Golden<ToIntroducer> = {
  register: [
    [
      {
        type: "register",
        version: 2,
        name: "alice",
        room: "lobby",
        instance,
        fingerprint,
        private: [at("10.0.0.4:40000")],
        links: [{ peer: "8899aabbccddeeff", route: "listen" }],
      },
      `{"type":"register","version":2,"name":"alice","room":"lobby","instance":"0011223344556677",` +
        `"fingerprint":"${fingerprint}","private":["10.0.0.4:40000"],` +
        `"links":[{"peer":"8899aabbccddeeff","route":"listen"}]}`,
    ],
    [
      {
        ...{ type: "register", version: 2, name: "alice", room: "lobby", instance, fingerprint },
        ...{ private: [], links: [], mapping: "sequential", wants: ["bob", "carol"] },
      },
      `{"type":"register","version":2,"name":"alice","room":"lobby","instance":"0011223344556677",` +
        `"fingerprint":"${fingerprint}","private":[],"links":[],` +
        `"mapping":"sequential","wants":["bob","carol"]}`,
    ],
    [
      {
        ...{ type: "register", version: 2, name: "alice", room: "lobby", instance, fingerprint },
        ...{ private: [], access: { at: 1_900_000_000_000, proof: fingerprint }, links: [] },
      },
      `{"type":"register","version":2,"name":"alice","room":"lobby","instance":"0011223344556677",` +
        `"fingerprint":"${fingerprint}","private":[],` +
        `"access":{"at":1900000000000,"proof":"${fingerprint}"},"links":[]}`,
    ],
  ],
  verify: [[{ type: "verify", token }, `{"type":"verify","token":"${token}"}`]],
  relay: [[{ type: "relay", token }, `{"type":"relay","token":"${token}"}`]],
  probe: [
    [{ type: "probe", token, peer: 2, step: -1 }, `{"type":"probe","token":"${token}","peer":2,"step":-1}`],
  ],
  connect: [
    [{ type: "connect", peer: 2 }, `{"type":"connect","peer":2}`],
    [{ type: "connect", peer: 2, relay: false }, `{"type":"connect","peer":2,"relay":false}`],
  ],
  linked: [
    [
      {
        type: "linked",
        peer: 2,
        token,
        route: "public",
        local: at("10.0.0.4:40000"),
        remote: at("203.0.113.7:40000"),
      },
      `{"type":"linked","peer":2,"token":"${token}","route":"public","local":"10.0.0.4:40000","remote":"203.0.113.7:40000"}`,
    ],
  ],
  unlinked: [
    [{ type: "unlinked", peer: 2, reason: "peer-quit" }, `{"type":"unlinked","peer":2,"reason":"peer-quit"}`],
  ],
  failed: [[failed, failedJson]],
  rename: [
    [{ type: "rename", name: "alice" }, `{"type":"rename","name":"alice"}`],
    [
      { type: "rename", name: "alice", proof: fingerprint },
      `{"type":"rename","name":"alice","proof":"${fingerprint}"}`,
    ],
  ],
  update: [
    [{ type: "update", private: [at("10.0.0.4:40000")] }, `{"type":"update","private":["10.0.0.4:40000"]}`],
  ],
  mapping: [
    [{ type: "mapping", mapping: "unknown" }, `{"type":"mapping","mapping":"unknown"}`],
    [
      { type: "mapping", mapping: "sequential", prediction: { endpoint: at("203.0.113.7:40000"), step: 2 } },
      `{"type":"mapping","mapping":"sequential","prediction":{"endpoint":"203.0.113.7:40000","step":2}}`,
    ],
  ],
  mapped: [
    [
      { type: "mapped", endpoint: at("203.0.113.7:40000") },
      `{"type":"mapped","endpoint":"203.0.113.7:40000"}`,
    ],
    [{ type: "mapped" }, `{"type":"mapped"}`],
  ],
  measured: [
    [
      { type: "measured", token, prediction: { endpoint: at("203.0.113.7:40000"), step: -256 } },
      `{"type":"measured","token":"${token}","prediction":{"endpoint":"203.0.113.7:40000","step":-256}}`,
    ],
    [{ type: "measured", token }, `{"type":"measured","token":"${token}"}`],
  ],
  "connect-back": [[{ type: "connect-back" }, `{"type":"connect-back"}`]],
  echo: [
    [{ type: "echo", text: "hello" }, `{"type":"echo","text":"hello"}`],
    [{ type: "echo", text: "" }, `{"type":"echo","text":""}`],
    [{ type: "echo", text: 'two\nlines, "ü", 😀' }, `{"type":"echo","text":"two\\nlines, \\"ü\\", 😀"}`],
  ],
  pong: [[{ type: "pong", id: 0 }, `{"type":"pong","id":0}`]],
};

const goldenToParticipant: Golden<ToParticipant> = {
  registered: [
    [
      {
        type: "registered",
        id: 1,
        name: "alice",
        room: "chess club",
        public: at("[2001:db8::7]:40000"),
        private: [],
        probePorts: [7001, 7002],
        alternates: [at("203.0.113.2:7001")],
      },
      `{"type":"registered","id":1,"name":"alice","room":"chess club","public":"[2001:db8::7]:40000","private":[],` +
        `"probePorts":[7001,7002],"alternates":["203.0.113.2:7001"]}`,
    ],
  ],
  peers: [
    [{ type: "peers", peers: [bob], more: true }, `{"type":"peers","peers":[${bobJson}],"more":true}`],
    [{ type: "peers", peers: [], more: false }, `{"type":"peers","peers":[],"more":false}`],
  ],
  joined: [[{ type: "joined", peer: bob }, `{"type":"joined","peer":${bobJson}}`]],
  updated: [
    [{ type: "updated", id: 2, roundTripMs: 23 }, `{"type":"updated","id":2,"roundTripMs":23}`],
    [
      { type: "updated", id: 2, otherPublic: at("[2001:db8::5]:40000"), mapping: "random" },
      `{"type":"updated","id":2,"otherPublic":"[2001:db8::5]:40000","mapping":"random"}`,
    ],
    [
      { type: "updated", id: 2, mapped: at("203.0.113.7:41000") },
      `{"type":"updated","id":2,"mapped":"203.0.113.7:41000"}`,
    ],
    [
      { type: "updated", id: 2, name: "bob", proof: fingerprint, private: [] },
      `{"type":"updated","id":2,"name":"bob","proof":"${fingerprint}","private":[]}`,
    ],
    [{ type: "updated", id: 2, mapped: null }, `{"type":"updated","id":2,"mapped":null}`],
  ],
  relay: [
    [
      { type: "relay", peer: bob, role: "controlled", token, why: "both-mappings-random" },
      `{"type":"relay","peer":${bobJson},"role":"controlled","token":"${token}","why":"both-mappings-random"}`,
    ],
  ],
  relaying: [[{ type: "relaying", rate: 1048576 }, `{"type":"relaying","rate":1048576}`]],
  elsewhere: [
    [
      { type: "elsewhere", host: "two.example.org", port: 7000 },
      `{"type":"elsewhere","host":"two.example.org","port":7000}`,
    ],
    [
      { type: "elsewhere", host: "2001:db8::7", port: 7000 },
      `{"type":"elsewhere","host":"2001:db8::7","port":7000}`,
    ],
  ],
  observed: [
    [
      { type: "observed", endpoint: at("203.0.113.7:40000") },
      `{"type":"observed","endpoint":"203.0.113.7:40000"}`,
    ],
  ],
  measure: [
    [
      { type: "measure", peer: bob, token, way: "fresh" },
      `{"type":"measure","peer":${bobJson},"token":"${token}","way":"fresh"}`,
    ],
    [
      { type: "measure", peer: bob, role: "controlling", token, way: "fresh" },
      `{"type":"measure","peer":${bobJson},"role":"controlling","token":"${token}","way":"fresh"}`,
    ],
  ],
  filtering: filterings.map((filtering) => [
    { type: "filtering", filtering },
    `{"type":"filtering","filtering":"${filtering}"}`,
  ]),
  renamed: [[{ type: "renamed", name: "alice" }, `{"type":"renamed","name":"alice"}`]],
  left: [[{ type: "left", id: 2 }, `{"type":"left","id":2}`]],
  punch: [
    [
      {
        type: "punch",
        peer: bob,
        role: "controlling",
        token,
        startInMs: 60,
        way: "predicted",
        round: 2,
        last: false,
        deadlineMs: 900,
        own: { endpoint: at("203.0.113.9:40001"), step: 0 },
        theirs: { endpoint: at("203.0.113.7:40002"), step: 1 },
      },
      `{"type":"punch","peer":${bobJson},"role":"controlling","token":"00112233445566778899aabbccddeeff","startInMs":60,` +
        `"way":"predicted","round":2,"last":false,"deadlineMs":900,` +
        `"own":{"endpoint":"203.0.113.9:40001","step":0},"theirs":{"endpoint":"203.0.113.7:40002","step":1}}`,
    ],
    [
      { type: "punch", peer: bob, role: "controlled", token, startInMs: 0, ...onlyRound },
      `{"type":"punch","peer":${bobJson},"role":"controlled","token":"00112233445566778899aabbccddeeff","startInMs":0,` +
        `"way":"direct","round":1,"last":true,"deadlineMs":10000}`,
    ],
  ],
  failed: [[failed, failedJson]],
  notice: [[{ type: "notice", text: "restart at noon" }, `{"type":"notice","text":"restart at noon"}`]],
  echo: [[{ type: "echo", text: "hello" }, `{"type":"echo","text":"hello"}`]],
  ping: [[{ type: "ping", id: 7 }, `{"type":"ping","id":7}`]],
  refused: [
    [
      {
        type: "refused",
        code: "unknown-peer",
        message: "no participant 9 here",
        request: "connect",
        peer: 9,
      },
      `{"type":"refused","code":"unknown-peer","message":"no participant 9 here","request":"connect","peer":9}`,
    ],
    [
      { type: "refused", code: "limit", message: "wait 2 s", request: "connect", peer: 9, retryInMs: 2000 },
      `{"type":"refused","code":"limit","message":"wait 2 s","request":"connect","peer":9,"retryInMs":2000}`,
    ],
    [
      { type: "refused", code: "bad-line", message: "a line must be one JSON object" },
      `{"type":"refused","code":"bad-line","message":"a line must be one JSON object"}`,
    ],
    [
      { type: "refused", code: "name-taken", message: "taken", name: "bob-2" },
      `{"type":"refused","code":"name-taken","message":"taken","name":"bob-2"}`,
    ],
    [
      { type: "refused", code: "key", message: "prove it", challenge: token },
      `{"type":"refused","code":"key","message":"prove it","challenge":"${token}"}`,
    ],
  ],
  bye: [
    [{ type: "bye", reason: "shutting down" }, `{"type":"bye","reason":"shutting down"}`],
    [
      { type: "bye", reason: "shutting down", retryInMs: 1500 },
      `{"type":"bye","reason":"shutting down","retryInMs":1500}`,
    ],
  ],
};

const goldenToPeer: Golden<ToPeer> = {
  nominate: [
    [
      { type: "nominate", token, proof: "ab".repeat(32) },
      `{"type":"nominate","token":"00112233445566778899aabbccddeeff","proof":"${"ab".repeat(32)}"}`,
    ],
  ],
  nominated: [
    [{ type: "nominated", proof: "ab".repeat(32) }, `{"type":"nominated","proof":"${"ab".repeat(32)}"}`],
  ],
};

const goldenLinkLine: Golden<LinkLine> = {
  say: [[{ type: "say", id: 1, text: "hello" }, `{"type":"say","id":1,"text":"hello"}`]],
  heard: [[{ type: "heard", id: 1 }, `{"type":"heard","id":1}`]],
  ping: [[{ type: "ping", id: 2 }, `{"type":"ping","id":2}`]],
  pong: [[{ type: "pong", id: 2 }, `{"type":"pong","id":2}`]],
};

const directions: [
  title: string,
  golden: Record<string, [ToIntroducer | ToParticipant | ToPeer | LinkLine, string][]>,
  parse: (line: string) => unknown,
][] = [
  ["participant to introducer", goldenToIntroducer, parseToIntroducer],
  ["introducer to participant", goldenToParticipant, parseToParticipant],
  ["peer to peer", goldenToPeer, parseToPeer],
  ["on a link", goldenLinkLine, parseLinkLine],
];

/** Fields that a message may lack. */
const optionalFields: Record<string, string[]> = {
  measure: ["role"],
  refused: ["request", "peer", "name", "challenge", "retryInMs"],
  bye: ["retryInMs"],
  register: ["proof", "direct", "mapping", "wants", "access", "private", "forwarded"],
  registered: ["verify", "relay", "probeToken", "roundTripMs"],
  connect: ["relay"],
  rename: ["proof"],
  updated: ["name", "proof", "private", "otherPublic", "mapped", "mapping", "roundTripMs"],
  mapped: ["endpoint"],
  filtering: ["elsewhere"],
  mapping: ["prediction"],
  measured: ["prediction"],
  punch: ["own", "theirs"],
  relay: ["why"],
};

describe.each(directions)("%s", (_title, golden, parse) => {
  const rows = Object.entries(golden).flatMap(([type, pairs]) =>
    pairs.map(([message, line], index) => ({ name: `${type} ${index}`, message, line })),
  );

  test.each(rows)("$name is this line", ({ message, line }) => {
    expect(encode(message)).toBe(`${line}\n`);
    expect(parse(line)).toStrictEqual(message);
  });

  test.each(rows)("$name needs each of its fields", ({ message, line }) => {
    for (const key of Object.keys(message)) {
      if (key === "type" || optionalFields[message.type]?.includes(key)) continue;
      const without: Record<string, unknown> = JSON.parse(line);
      delete without[key];
      const refusal = refusalOf(() => parse(JSON.stringify(without)));
      expect([key, refusal.code, refusal.fatal]).toEqual([key, "bad-field", false]);
      expect(refusal.message).toStartWith(`${key} must be `);
    }
  });

  test.each(rows)("$name drops what it does not know", ({ message, line }) => {
    for (const extra of [`"colour":"red"`, `"__proto__":{"id":9}`, `"toString":1`, `"constructor":null`]) {
      const parsed = parse(`${line.slice(0, -1)},${extra}}`);
      expect(parsed).toStrictEqual(message);
      expect(Object.keys(parsed as object)).toEqual(Object.keys(message));
    }
  });

  test.each([
    ["nothing", "", "bad-line"],
    ["garbage", "hello", "bad-line"],
    ["cut short", `{"type":"bye"`, "bad-line"],
    ["two objects", `{"type":"bye"}{"type":"bye"}`, "bad-line"],
    ["array", `[{"type":"bye"}]`, "bad-line"],
    ["number", "7", "bad-line"],
    ["string", `"bye"`, "bad-line"],
    ["null", "null", "bad-line"],
    ["brackets nested deeper than any stack", "[".repeat(60_000), "bad-line"],
    ["no type", "{}", "unknown-type"],
    ["type null", `{"type":null}`, "unknown-type"],
    ["type a list of one", `{"type":["bye"]}`, "unknown-type"],
    ["type in capitals", `{"type":"BYE"}`, "unknown-type"],
    ["type unheard of", `{"type":"dance"}`, "unknown-type"],
    ["type __proto__", `{"type":"__proto__"}`, "unknown-type"],
    ["type constructor", `{"type":"constructor"}`, "unknown-type"],
    ["type toString", `{"type":"toString"}`, "unknown-type"],
    ["type only inherited", `{"__proto__":{"type":"bye","reason":""}}`, "unknown-type"],
  ] satisfies [string, string, RefusalCode][])("%s is refused", (_what, line, code) => {
    const refusal = refusalOf(() => parse(line));
    expect([refusal.code, refusal.fatal]).toEqual([code, false]);
    expect(refusal.message).toStartWith(
      code === "bad-line" ? "a line must be one JSON object" : "type must be one of ",
    );
  });
});

test("a message of the other direction is refused", () => {
  const rows: [what: string, run: () => unknown][] = [
    ["punch to the introducer", () => parseToIntroducer(`{"type":"punch"}`)],
    ["register to a participant", () => parseToParticipant(`{"type":"register"}`)],
    ["nominate to a participant", () => parseToParticipant(`{"type":"nominate"}`)],
    ["connect to a peer", () => parseToPeer(`{"type":"connect","peer":2}`)],
    ["a text before the nomination", () => parseToPeer(encode({ type: "say", id: 1, text: "hello" }))],
    ["a nomination on a link", () => parseLinkLine(`{"type":"nominate","token":"${token}"}`)],
    ["what was the end of a link once", () => parseLinkLine(`{"type":"bye","reason":"quit"}`)],
  ];
  for (const [what, run] of rows) expect([what, refusalOf(run).code]).toEqual([what, "unknown-type"]);
});

const register: Record<string, unknown> = goldenToIntroducer.register[0]![0];
const linked: Record<string, unknown> = goldenToIntroducer.linked[0]![0];
const punch: Record<string, unknown> = goldenToParticipant.punch[0]![0];
const tooMany = Array.from({ length: maxCandidates + 1 }, (_, index) => `10.0.0.${index}:1`);

const badFields: [what: string, parse: (line: string) => unknown, value: unknown, names: string][] = [
  ["version text", parseToIntroducer, { ...register, version: "1" }, "version"],
  ["version float", parseToIntroducer, { ...register, version: 1.5 }, "version"],
  ["version negative", parseToIntroducer, { ...register, version: -1 }, "version"],
  ["version null", parseToIntroducer, { ...register, version: null }, "version"],
  ["name number", parseToIntroducer, { ...register, name: 7 }, "name"],
  ["name empty", parseToIntroducer, { ...register, name: "" }, "name"],
  ["name too long", parseToIntroducer, { ...register, name: "a".repeat(maxNameLength + 1) }, "name"],
  ["name with blank", parseToIntroducer, { ...register, name: "al ice" }, "name"],
  ["name with escape sequence", parseToIntroducer, { ...register, name: "\x1b[2Jalice" }, "name"],
  ["name with lone surrogate", parseToIntroducer, { ...register, name: "a\ud800" }, "name"],
  ["name like an id", parseToIntroducer, { ...register, name: "42" }, "name"],
  ["room empty", parseToIntroducer, { ...register, room: "" }, "room"],
  ["room too long", parseToIntroducer, { ...register, room: "r".repeat(maxRoomLength + 1) }, "room"],
  ["room with line feed", parseToIntroducer, { ...register, room: "a\nb" }, "room"],
  ["room with C1 control", parseToIntroducer, { ...register, room: "a\x9b2J" }, "room"],
  ["room with bidi override", parseToIntroducer, { ...register, room: "a\u202eb" }, "room"],
  ["room with lone surrogate", parseToIntroducer, { ...register, room: "\udc00" }, "room"],
  ["wants a name", parseToIntroducer, { ...register, wants: "bob" }, "wants"],
  ["wants no name", parseToIntroducer, { ...register, wants: ["bob", "two words"] }, "wants[1]"],
  ["wants too many", parseToIntroducer, { ...register, wants: Array(maxWants + 1).fill("bob") }, "wants"],
  ["mapping unheard of", parseToIntroducer, { ...register, mapping: "cone" }, "mapping"],
  ["instance too short", parseToIntroducer, { ...register, instance: instance.slice(1) }, "instance"],
  ["instance not hex", parseToIntroducer, { ...register, instance: "g".repeat(16) }, "instance"],
  ["instance and a line feed", parseToIntroducer, { ...register, instance: `${instance}\n` }, "instance"],
  [
    "fingerprint in capitals",
    parseToIntroducer,
    { ...register, fingerprint: "AB".repeat(32) },
    "fingerprint",
  ],
  ["fingerprint too long", parseToIntroducer, { ...register, fingerprint: `${fingerprint}0` }, "fingerprint"],
  ["fingerprint in a list", parseToIntroducer, { ...register, fingerprint: [fingerprint] }, "fingerprint"],
  ["candidates an object", parseToIntroducer, { ...register, private: { length: 0 } }, "private"],
  ["candidates text", parseToIntroducer, { ...register, private: "10.0.0.1:1" }, "private"],
  ["too many candidates", parseToIntroducer, { ...register, private: tooMany }, "private"],
  ["candidate null", parseToIntroducer, { ...register, private: [null] }, "private[0]"],
  ["candidate host name", parseToIntroducer, { ...register, private: ["10.0.0.1:1", "a.b:1"] }, "private[1]"],
  ["candidate port 0", parseToIntroducer, { ...register, private: ["10.0.0.1:0"] }, "private[0]"],
  ["candidate multicast", parseToIntroducer, { ...register, private: ["224.0.0.1:80"] }, "private[0]"],
  ["candidate broadcast", parseToIntroducer, { ...register, private: ["255.255.255.255:80"] }, "private[0]"],
  ["candidate unspecified", parseToIntroducer, { ...register, private: ["[::]:80"] }, "private[0]"],
  [
    "candidate mapped unspecified",
    parseToIntroducer,
    { ...register, private: ["[::ffff:0.0.0.0]:80"] },
    "private[0]",
  ],
  ["candidate link-local", parseToIntroducer, { ...register, private: ["[fe80::1]:80"] }, "private[0]"],
  ["candidate very long", parseToIntroducer, { ...register, private: ["1".repeat(60_000)] }, "private[0]"],
  ["peer 0", parseToIntroducer, { type: "connect", peer: 0 }, "peer"],
  ["peer negative", parseToIntroducer, { type: "connect", peer: -2 }, "peer"],
  ["peer float", parseToIntroducer, { type: "connect", peer: 2.5 }, "peer"],
  ["peer beyond exact numbers", parseToIntroducer, { type: "connect", peer: 2 ** 53 }, "peer"],
  ["peer text", parseToIntroducer, { type: "connect", peer: "2" }, "peer"],
  ["peer in a list", parseToIntroducer, { type: "connect", peer: [2] }, "peer"],
  ["route unheard of", parseToIntroducer, { ...linked, route: "tunnel" }, "route"],
  ["route inherited", parseToIntroducer, { ...linked, route: "toString" }, "route"],
  ["local no endpoint", parseToIntroducer, { ...linked, local: "here" }, "local"],
  ["remote number", parseToIntroducer, { ...linked, remote: 80 }, "remote"],
  ["reason an object", parseToIntroducer, { type: "unlinked", peer: 2, reason: {} }, "reason"],
  ["failure unheard of", parseToIntroducer, { ...failed, reason: "bored" }, "reason"],
  ["failure inherited", parseToIntroducer, { ...failed, reason: "constructor" }, "reason"],
  ["a reason that is only one's own", parseToIntroducer, { ...failed, reason: "cancelled" }, "reason"],
  [
    "a reason of one's own words",
    parseToIntroducer,
    { type: "unlinked", peer: 2, reason: "bored" },
    "reason",
  ],
  ["token too short", parseToIntroducer, { ...failed, token: token.slice(2) }, "token"],
  ["text too long", parseToIntroducer, { type: "echo", text: "x".repeat(maxTextLength + 1) }, "text"],
  ["text with lone surrogate", parseToIntroducer, { type: "echo", text: "\ud83d" }, "text"],
  ["more a number", parseToParticipant, { type: "peers", peers: [], more: 0 }, "more"],
  ["peer null", parseToParticipant, { type: "joined", peer: null }, "peer"],
  ["peer a list", parseToParticipant, { type: "joined", peer: [bob] }, "peer"],
  ["peer's name bad", parseToParticipant, { type: "joined", peer: { ...bob, name: "b b" } }, "peer.name"],
  [
    "peer's endpoint missing",
    parseToParticipant,
    { type: "joined", peer: { ...bob, public: undefined } },
    "peer.public",
  ],
  [
    "peer's candidate bad",
    parseToParticipant,
    { ...punch, peer: { ...bob, private: ["x"] } },
    "peer.private[0]",
  ],
  [
    "second peer's candidate bad",
    parseToParticipant,
    { type: "peers", peers: [bob, { ...bob, private: [bob.public, "x"] }], more: false },
    "peers[1].private[1]",
  ],
  [
    "too many links",
    parseToIntroducer,
    { ...register, links: Array(1025).fill({ peer: instance, route: "public" }) },
    "links",
  ],
  [
    "second link bad",
    parseToIntroducer,
    {
      ...register,
      links: [
        { peer: instance, route: "public" },
        { peer: instance, route: "air" },
      ],
    },
    "links[1].route",
  ],
  [
    "too many peers",
    parseToParticipant,
    { type: "peers", peers: Array(1025).fill(bob), more: true },
    "peers",
  ],
  ["role unheard of", parseToParticipant, { ...punch, role: "leader" }, "role"],
  ["start in the past", parseToParticipant, { ...punch, startInMs: -1 }, "startInMs"],
  ["start after the deadline", parseToParticipant, { ...punch, startInMs: punchDeadlineMs + 1 }, "startInMs"],
  ["refusal code unheard of", parseToParticipant, { type: "refused", code: "no", message: "" }, "code"],
  [
    "optional field null",
    parseToParticipant,
    { type: "refused", code: "limit", message: "", peer: null },
    "peer",
  ],
  [
    "optional field wrong",
    parseToParticipant,
    { type: "refused", code: "limit", message: "", request: 1 },
    "request",
  ],
];

test.each(badFields)("%s is refused by name", (_what, parse, value, names) => {
  const refusal = refusalOf(() => parse(JSON.stringify(value)));
  expect([refusal.code, refusal.fatal]).toEqual(["bad-field", false]);
  expect(refusal.message).toStartWith(`${names} must `);
  expect(refusal.message.length).toBeLessThan(200);
});

test("a number too big for a double is refused", () => {
  expect(refusalOf(() => parseLinkLine(`{"type":"ping","id":1e999}`)).message).toStartWith("id must be ");
});

test("what is just within the limits is accepted", () => {
  const candidates = tooMany.slice(1);
  const rows: [what: string, changes: Record<string, unknown>][] = [
    ["longest name", { name: "n".repeat(maxNameLength) }],
    ["name with a digit more than an id", { name: "42b" }],
    ["name in another script", { name: "Ζωή-🦊" }],
    ["longest room", { room: "r".repeat(maxRoomLength) }],
    ["room with blanks", { room: "our private room, 2nd floor" }],
    ["most candidates", { private: candidates }],
    ["no candidates", { private: [] }],
    ["a version of the future", { version: 9999 }],
  ];
  for (const [what, changes] of rows) {
    const parsed: unknown = parseToIntroducer(JSON.stringify({ ...register, ...changes }));
    expect([what, parsed]).toEqual([what, { ...register, ...changes }]);
  }
});

test("endpoints in messages become canonical, so that equal ones are ===", () => {
  const spelt = { ...register, private: ["[::ffff:10.0.0.4]:040", "[2001:DB8:0:0::7]:80"] };
  const parsed = parseToIntroducer(JSON.stringify(spelt));
  expect(parsed).toMatchObject({ private: ["10.0.0.4:40", "[2001:db8::7]:80"] });
});

test("the longest text fits a line, even when every character is escaped or three bytes long", () => {
  for (const char of ["\u0000", "\u2028", "\uffff", "€", '"']) {
    const message: LinkLine = { type: "say", id: Number.MAX_SAFE_INTEGER, text: char.repeat(maxTextLength) };
    const line = encode(message);
    expect(utf8.encode(line).length).toBeLessThanOrEqual(maxLineBytes);
    expect(parseLinkLine(line)).toEqual(message);
  }
});

test("the biggest peer fits a line", () => {
  const widest = Array.from({ length: maxCandidates }, () => at(`[${"1234:".repeat(7)}1234]:65535`));
  const peer: Peer = {
    ...bob,
    name: "€".repeat(maxNameLength),
    private: widest,
    public: widest[0]!,
    otherPublic: widest[0]!,
  };
  const line = encode({
    type: "punch",
    peer,
    role: "controlling",
    token,
    startInMs: punchDeadlineMs,
    ...onlyRound,
  });
  expect(utf8.encode(line).length).toBeLessThanOrEqual(maxLineBytes);
  expect(parseToParticipant(line)).toMatchObject({ peer });
});

const punchLine = JSON.parse(goldenToParticipant.punch[1]![1]) as Record<string, unknown>;
const registeredLine = JSON.parse(goldenToParticipant.registered[0]![1]) as Record<string, unknown>;
const measuredLine = { type: "measured", token };
const seen = "203.0.113.7:40000";

test.each<[parse: (line: string) => unknown, base: object, field: string, good: unknown[], bad: unknown[]]>([
  [parseToParticipant, punchLine, "way", ["direct", "fresh", "birthday"], ["", "relay", "toString", 1]],
  [parseToParticipant, punchLine, "round", [1, 100], [0, 101, 1.5, "1", -1]],
  [parseToParticipant, punchLine, "last", [true, false], [0, "true", null]],
  [parseToParticipant, punchLine, "deadlineMs", [1, punchDeadlineMs], [0, punchDeadlineMs + 1, -1, 1.5, "9"]],
  [parseToParticipant, punchLine, "startInMs", [0, punchDeadlineMs], [-1, punchDeadlineMs + 1]],
  [
    parseToParticipant,
    registeredLine,
    "probePorts",
    [[], [1], [1, 2, 3, 65535]],
    [[0], [65536], [1, 2, 3, 4, 5], ["7001"], 7001],
  ],
  [
    parseToParticipant,
    registeredLine,
    "alternates",
    [[], [seen, seen, seen, seen]],
    [[seen, seen, seen, seen, seen], ["203.0.113.7"], ["224.0.0.1:7"], ["0.0.0.0:7"]],
  ],
  [parseToParticipant, { type: "filtering" }, "filtering", ["dropped", "refused", "let-in"], ["open", 1]],
  [parseToParticipant, { type: "observed" }, "endpoint", [seen], ["255.255.255.255:1", "x", 1, "1.2.3.4:0"]],
  [parseToIntroducer, { type: "mapping" }, "mapping", ["unknown", "random"], ["", "symmetric", 1]],
  [parseToIntroducer, { type: "mapped" }, "endpoint", [seen], [null, "224.0.0.1:7", "203.0.113.7:0", 1]],
  [
    parseToParticipant,
    { type: "updated", id: 2 },
    "mapped",
    [seen, null],
    ["", "0.0.0.0:1", "203.0.113.7", 0, false],
  ],
  [
    parseToIntroducer,
    measuredLine,
    "prediction",
    [
      { endpoint: seen, step: 4096 },
      { endpoint: seen, step: -4096 },
      { endpoint: seen, step: 0 },
    ],
    [
      { endpoint: seen, step: 4097 },
      { endpoint: seen, step: -4097 },
      { endpoint: seen, step: 0.5 },
      { endpoint: seen },
      { step: 1 },
      { endpoint: "0.0.0.0:1", step: 1 },
      [],
      null,
      "next",
    ],
  ],
])("bounds: %p %o %s", (parse, base, field, good, bad) => {
  for (const value of good) {
    expect(parse(JSON.stringify({ ...base, [field]: value }))).toMatchObject({ [field]: value });
  }
  for (const value of bad) {
    const refusal = refusalOf(() => parse(JSON.stringify({ ...base, [field]: value })));
    expect([value, refusal.code]).toEqual([value, "bad-field"]);
    expect(refusal.message).toStartWith(field);
  }
});

test("own and theirs of a punch are predictions like any other", () => {
  for (const field of ["own", "theirs"]) {
    const bad = JSON.stringify({ ...punchLine, [field]: { endpoint: seen, step: 5000 } });
    expect(refusalOf(() => parseToParticipant(bad)).message).toStartWith(`${field}.step must be `);
  }
});

test("a peer after a change has what was told, and loses a mapped port that is closed", () => {
  const mapped = at("203.0.113.7:41000");
  const before: Peer = { ...bob, mapped };
  expect(changedPeer(bob, { mapped })).toEqual(before);
  expect(changedPeer(before, { roundTripMs: 7 })).toEqual({ ...before, roundTripMs: 7 });
  expect(changedPeer(before, { mapping: "random", mapped: null })).toEqual({ ...bob, mapping: "random" });
});

test("a list of the most peers is accepted", () => {
  const message: ToParticipant = { type: "peers", peers: Array<Peer>(1024).fill(bob), more: true };
  expect(parseToParticipant(encode(message))).toEqual(message);
});

test("every failure reason and refusal code travels", () => {
  const own: FailureReason[] = ["relay-failed", "refused", "cancelled", "introducer-lost"];
  for (const reason of Object.keys(failureReasons) as FailureReason[]) {
    if (own.includes(reason)) {
      // Each side's own business.
      const refusal = refusalOf(() => parseToIntroducer(encode({ ...failed, reason })));
      expect(refusal.message).toStartWith("reason must be one of");
    } else expect(parseToIntroducer(encode({ ...failed, reason }))).toEqual({ ...failed, reason });
  }
  for (const code of refusalCodes) {
    const message: ToParticipant = { type: "refused", code, message: "no" };
    expect(parseToParticipant(encode(message))).toEqual(message);
  }
});
