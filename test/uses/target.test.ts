import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { AllowList } from "../../native/uses/allow-list.ts";
import {
  formatListen,
  formatTarget,
  parseForward,
  parseListen,
  parsePipe,
  parseProxy,
  parseTargets,
  readPurposeTarget,
  SpecError,
} from "../../native/uses/target.ts";
import { Refusal } from "../../protocol.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

/** `BIND:PORT PEER HOST:PORT`, or why not. */
function forward(text: string, parse = parseForward): string {
  try {
    const { listen, peer, target, ports } = parse(text);
    const many = ports === 1 ? "" : ` × ${ports}`;
    const kind = listen.kind === "udp" ? " udp" : "";
    const to = "host" in target ? `${target.host} ${target.port}` : formatTarget(target);
    const from = "bind" in listen ? `${listen.bind} ${listen.port}` : formatListen(listen);
    return `${from} ${peer} ${to}${many}${kind}`;
  } catch (error) {
    if (error instanceof SpecError) return error.message;
    throw error;
  }
}

describe("a forward as it is written", () => {
  test.each([
    ["8080:bob:80", "127.0.0.1 8080 bob localhost 80"],
    ["8080:7:80", "127.0.0.1 8080 7 localhost 80"],
    ["8080:bob:db.Internal.:5432", "127.0.0.1 8080 bob db.internal 5432"],
    ["0.0.0.0:8080:bob:80", "0.0.0.0 8080 bob localhost 80"],
    ["*:8080:bob:80", "0.0.0.0 8080 bob localhost 80"],
    ["localhost:8080:bob:80", "127.0.0.1 8080 bob localhost 80"],
    ["[::1]:8080:bob:80", "::1 8080 bob localhost 80"],
    ["8080:bob:[2001:DB8:0::7]:80", "127.0.0.1 8080 bob 2001:db8::7 80"],
    ["[::1]:8080:bob:[::ffff:10.0.0.1]:80", "::1 8080 bob 10.0.0.1 80"],
    ["127.0.0.2:8080:bob:db:80", "127.0.0.2 8080 bob db 80"],
    ["8080::80", "127.0.0.1 8080  localhost 80"],
    ["[::1]:8080::db:80", "::1 8080  db 80"],
    ["8080/tcp:bob:80", "127.0.0.1 8080 bob localhost 80"],
    ["27015/udp:bob:27016/udp", "127.0.0.1 27015 bob localhost 27016 udp"],
    ["53-54/udp:bob:nas:63-64/udp", "127.0.0.1 53 bob nas 63 × 2 udp"],
    ["53/udp:bob:nas:53/udp", "127.0.0.1 53 bob nas 53 udp"],
    ["[::1]:53/udp::[::1]:53/udp", "::1 53  ::1 53 udp"],
    ["8000-8010:bob:9000-9010", "127.0.0.1 8000 bob localhost 9000 × 11"],
    ["8000-8001:bob:db:80-81", "127.0.0.1 8000 bob db 80 × 2"],
    ["*:8000-8127::8000-8127", "0.0.0.0 8000  localhost 8000 × 128"],
    ["/tmp/d.sock:bob:/run/docker.sock", "/tmp/d.sock bob /run/docker.sock"],
    ["/tmp/d.sock:bob:db:80", "/tmp/d.sock bob db 80"],
    ["/tmp/d.sock::80", "/tmp/d.sock  localhost 80"],
    ["8080:bob:/run/x", "127.0.0.1 8080 bob /run/x"],
    ["*:8080:bob:/run/..x/.y", "0.0.0.0 8080 bob /run/..x/.y"],
    [`8080:bob:/${"x".repeat(102)}`, `127.0.0.1 8080 bob /${"x".repeat(102)}`],
    ["8000-8000:bob:80", "127.0.0.1 8000 bob localhost 80"],
  ])("%s", (text, expected) => expect(forward(text)).toBe(expected));

  test.each([
    ["", "a forward is [BIND:]PORT:PEER:[HOST:]PORT, such as 8080:bob:80"],
    ["8080:bob", "a forward is [BIND:]PORT:PEER:[HOST:]PORT, such as 8080:bob:80"],
    ["::1:8080:bob:80", "parts are separated by colons, IPv6 addresses in brackets"],
    ["8080:bob:[::1:80", "parts are separated by colons, IPv6 addresses in brackets"],
    ["8080:bob::80", " is neither a host name nor an address"],
    ["0:bob:80", "0 is not a port (1 to 65535)"],
    ["8080:bob:65536", "65536 is not a port (1 to 65535)"],
    ["8000-8010:bob:80", "11 here and 1 there: both must have as many ports"],
    ["8000-8010:bob:80-85", "11 here and 6 there: both must have as many ports"],
    ["8000-8128:bob:8000-8128", "at most 128 ports in a row can be forwarded, not 129"],
    [`8080:bob:/${"x".repeat(103)}`, "the path of a socket has at most 103 bytes, not 104"],
    [`/tmp/${"é".repeat(60)}:bob:80`, "the path of a socket has at most 103 bytes, not 125"],
    ["8080:bob:/run/", "the path of a socket is a whole one, such as /run/docker.sock"],
    ["8080:bob:/", "the path of a socket is a whole one, such as /run/docker.sock"],
    ["8080:bob://run", "the path of a socket is a whole one, such as /run/docker.sock"],
    ["8080:bob:/run/../etc/x", "the path of a socket is a whole one, such as /run/docker.sock"],
    ["/tmp/./x:bob:80", "the path of a socket is a whole one, such as /run/docker.sock"],
    ["8080:bob:/run/\u200bx", "the path of a socket is a whole one, such as /run/docker.sock"],
    ["8080:bob:run/x", "run/x is not a port (1 to 65535)"],
    ["53/udp:bob:53", "one end is UDP and the other is not: write /udp after both ports"],
    ["53:bob:53/udp", "one end is UDP and the other is not: write /udp after both ports"],
    ["53/sctp:bob:53/sctp", "53/sctp is not a port (1 to 65535)"],
    ["0/udp:bob:53/udp", "0 is not a port (1 to 65535)"],
    ["/tmp/x:bob:53/udp", "one end is UDP and the other is not: write /udp after both ports"],
    ["8000-8001:bob:/run/x", "2 here and 1 there: both must have as many ports"],
    ["8080:bob:nas:/run/x", "/run/x is not a port (1 to 65535)"],
    ["*:/tmp/x:bob:80", "/tmp/x is not a port (1 to 65535)"],
    ["8010-8000:bob:8010-8000", "8010-8000 must begin with the lower port, as 8000-8010"],
    ["8000-:bob:80", " is not a port (1 to 65535)"],
    ["8000-8001-8002:bob:80", "8001-8002 is not a port (1 to 65535)"],
    ["8000-65536:bob:80", "65536 is not a port (1 to 65535)"],
    ["8080:bob:http", "http is not a port (1 to 65535)"],
    ["eth0:8080:bob:80", "eth0 is not an address of this host to listen on (* for all)"],
    ["8080:bob:-x:80", "-x is neither a host name nor an address"],
    ["8080:bob:a b:80", "a b is neither a host name nor an address"],
  ])("refused: %s", (text, reason) => expect(forward(text)).toBe(`${text}: ${reason}`));
});

describe("a SOCKS5 proxy as it is written", () => {
  test.each([
    ["1080:bob", "127.0.0.1 1080 bob SOCKS5"],
    ["1080", "127.0.0.1 1080  SOCKS5"],
    ["/tmp/s.sock:bob", "/tmp/s.sock bob SOCKS5"],
    ["1080/udp:bob", "1080/udp:bob: a SOCKS5 proxy listens on one port of TCP"],
    ["1080:", "127.0.0.1 1080  SOCKS5"],
    ["*:1080:bob", "0.0.0.0 1080 bob SOCKS5"],
    ["[::1]:1080:7", "::1 1080 7 SOCKS5"],
    ["bob:1080", "bob:1080: bob is not a port (1 to 65535)"],
    ["1080:bob:80", "1080:bob:80: 1080 is not an address of this host to listen on (* for all)"],
    ["*:1080:bob:80", "*:1080:bob:80: a SOCKS5 proxy is [BIND:]PORT:PEER, such as 1080:bob"],
    ["1080-1081:bob", "1080-1081:bob: a SOCKS5 proxy listens on one port of TCP"],
    ["", ":  is not a port (1 to 65535)"],
  ])("%s", (text, expected) => expect(forward(text, parseProxy)).toBe(expected));
});

test("what listens, and where a pipe leads", () => {
  const tcp = { kind: "tcp", bind: "127.0.0.1" } as const;
  expect(parseListen("8080")).toEqual({ listen: { ...tcp, port: 8080 }, ports: 1 });
  expect(parseListen("8000-8010")).toEqual({ listen: { ...tcp, port: 8000 }, ports: 11 });
  expect(parseListen("[::]:8080")).toEqual({ listen: { ...tcp, bind: "::", port: 8080 }, ports: 1 });
  expect(parseListen("/tmp/x")).toEqual({ listen: { kind: "unix", path: "/tmp/x" }, ports: 1 });
  expect(formatListen(parseListen("[::1]:53/udp").listen)).toBe("[::1]:53/udp");
  expect(() => parsePipe("bob:53/udp")).toThrow("UDP is none");
  expect(parsePipe("bob:/run/x")).toEqual({ peer: "bob", target: { kind: "unix", path: "/run/x" } });
  expect(() => parseListen("a:b:c")).toThrow("what listens is [BIND:]PORT");
  expect(parsePipe("bob")).toEqual({ peer: "bob" });
  expect(parsePipe("bob:22")).toEqual({ peer: "bob", target: { kind: "tcp", host: "localhost", port: 22 } });
  expect(parsePipe("bob:[::1]:22")).toEqual({ peer: "bob", target: { kind: "tcp", host: "::1", port: 22 } });
  expect(parsePipe("")).toEqual({ peer: "" });
  expect(parsePipe(":22")).toEqual({ peer: "", target: { kind: "tcp", host: "localhost", port: 22 } });
  expect(() => parsePipe("a:b:c:d")).toThrow("a pipe is PEER or PEER:[HOST:]PORT");
  expect(() => parsePipe("bob:x:22:y")).toThrow("a pipe is PEER or PEER:[HOST:]PORT");
});

test("what is shared is one target, or several in a row", () => {
  const target = (port: number, host = "localhost") => ({ kind: "tcp", host, port });
  expect(parseTargets("8000")).toEqual([target(8000)] as never);
  expect(parseTargets("nas:80-82")).toEqual([
    target(80, "nas"),
    target(81, "nas"),
    target(82, "nas"),
  ] as never);
  expect(() => parseTargets("82-80")).toThrow("must begin with the lower port");
});

/** Whether a request gets through, its name having these addresses. */
function allows(rules: string[], request: string, addresses: string[] = []): string[] | "not looked up" {
  const list = new AllowList(() => ["192.168.1.1", "fd00::1"]);
  for (const rule of rules) list.add(rule);
  const target = parseTargets(request)[0]!;
  if (!list.mayPermit(target)) return "not looked up";
  return list.permitted(target, addresses.length > 0 ? addresses : [target.host]);
}

describe("what is allowed", () => {
  test("nothing, unless it is said", () => expect(allows([], "22")).toBe("not looked up"));

  test("a port alone means localhost, by name and by address", () => {
    expect(allows(["22"], "22", ["127.0.0.1", "::1"])).toEqual(["127.0.0.1", "::1"]);
    expect(allows(["22"], "127.0.0.1:22")).toEqual(["127.0.0.1"]);
    expect(allows(["22"], "[::ffff:127.0.0.1]:22")).toEqual(["127.0.0.1"]);
    expect(allows(["22"], "127.0.0.2:22")).toEqual([]);
    expect(allows(["22"], "0.0.0.0:22")).toEqual([]);
    expect(allows(["22"], "80", ["127.0.0.1"])).toBe("not looked up");
    expect(allows(["*"], "80", ["127.0.0.1"])).toEqual(["127.0.0.1"]);
  });

  test("ports in a row mean each of them, and no other", () => {
    const rules = ["8000-8010", "10.0.0.0/8:1-65535"];
    expect(allows(rules, "8000", ["127.0.0.1"])).toEqual(["127.0.0.1"]);
    expect(allows(rules, "8010", ["127.0.0.1"])).toEqual(["127.0.0.1"]);
    for (const port of ["7999", "8011"]) expect(allows(["8000-8010"], port)).toBe("not looked up");
    expect(allows(rules, "10.1.2.3:65535")).toEqual(["10.1.2.3"]);
    const list = new AllowList();
    expect(["8000-8010", "localhost:8000-8010", "80-80"].map((rule) => list.add(rule))).toEqual([
      "localhost:8000-8010",
      "localhost:8000-8010",
      "localhost:80",
    ]);
    expect([list.remove("80"), list.remove("8000"), list.remove("8000-8010")]).toEqual([true, false, true]);
  });

  test("a socket is allowed by its path alone, and by no other rule", () => {
    const list = new AllowList();
    for (const rule of ["*:*", "*", "/run/x.sock"]) list.add(rule);
    expect(list.rules).toEqual(["*:*", "localhost:*", "/run/x.sock"]);
    const paths = ["/run/x.sock", "/run/y.sock", "/run"];
    expect(paths.map((path) => list.permitsPath(path))).toEqual([true, false, false]);
    expect(list.remove("/run/x.sock")).toBe(true);
    expect(list.permitsPath("/run/x.sock")).toBe(false);
    for (const rule of ["/run/../x", "/", "//x", "/run/x/", `/${"x".repeat(103)}`])
      expect(() => list.add(rule)).toThrow(SpecError);
  });

  test("what is delicate has to be named: the link's own addresses, a cloud's passwords, the router's page", () => {
    const delicate = [
      "169.254.169.254",
      "169.254.1.1",
      "[fe80::1]",
      "[fd00:ec2::254]",
      "192.168.1.1",
      "[fd00::1]",
    ];
    for (const host of delicate)
      for (const rule of ["*:80", "0.0.0.0/0:80", "[::/0]:80"])
        expect(allows([rule], `${host}:80`)).toEqual([]);
    for (const host of delicate)
      expect(allows([`${host}:80`], `${host}:80`)).toEqual([host.replace(/[[\]]/g, "")]);
    expect(allows(["169.254.0.0/16:80"], "169.254.1.1:80")).toEqual(["169.254.1.1"]);
    expect(allows(["*:80"], "192.168.1.2:80")).toEqual(["192.168.1.2"]);
    expect(allows(["*:80"], "sly.example:80", ["169.254.169.254", "192.0.2.1"])).toEqual(["192.0.2.1"]);
  });

  test("a network counts for addresses, never for a name", () => {
    const rules = ["10.0.0.0/8:443", "[fd00::/8]:*"];
    expect(allows(rules, "10.1.2.3:443")).toEqual(["10.1.2.3"]);
    expect(allows(rules, "11.1.2.3:443")).toEqual([]);
    expect(allows(rules, "[fd12::1]:7")).toEqual(["fd12::1"]);
    expect(allows(rules, "[fe12::1]:7")).toEqual([]);
    expect(allows(rules, "sly.example:443", ["10.1.1.1", "fd00::1"])).toBe("not looked up");
  });

  test("a network counts for addresses of its family only", () => {
    expect(allows(["[::/0]:22"], "127.0.0.1:22")).toEqual([]);
    expect(allows(["[::/0]:22"], "[::ffff:127.0.0.1]:22")).toEqual([]);
    expect(allows(["[::/0]:22"], "22", ["127.0.0.1", "::1"])).toEqual(["::1"]);
    expect(allows(["0.0.0.0/0:22"], "22", ["127.0.0.1", "::1"])).toEqual(["127.0.0.1"]);
    expect(allows(["0.0.0.0/0:22", "[::/0]:22"], "0.0.0.0:22")).toEqual([]);
    expect(allows(["0.0.0.0/0:22", "[::/0]:22"], "[::]:22")).toEqual([]);
  });

  test("a name counts for that name only", () => {
    expect(allows(["db.internal:5432"], "DB.internal.:5432", ["10.0.0.5"])).toEqual(["10.0.0.5"]);
    expect(allows(["db.internal:5432"], "other.internal:5432", ["10.0.0.5"])).toBe("not looked up");
    expect(allows(["db.internal:5432"], "10.0.0.5:5432")).toBe("not looked up");
    expect(allows(["db.internal:5432"], "db.internal:5432", ["127.0.0.1", "169.254.1.1", "::1"])).toEqual([]);
    const says = ["db.internal:5432", "127.0.0.0/8:5432"];
    expect(allows(says, "db.internal:5432", ["127.0.0.1", "::1"])).toEqual(["127.0.0.1"]);
  });

  test("a star for the host is any host", () => {
    expect(allows(["*:80"], "192.0.2.1:80")).toEqual(["192.0.2.1"]);
    expect(allows(["*:80"], "192.0.2.1:81")).toBe("not looked up");
  });

  test("a rule for TCP is none for UDP, nor the other way", () => {
    expect(allows(["53"], "53/udp", ["127.0.0.1"])).toBe("not looked up");
    expect(allows(["53/udp"], "53", ["127.0.0.1"])).toBe("not looked up");
    expect(allows(["*", "*:*"], "53/udp", ["127.0.0.1"])).toBe("not looked up");
    expect(allows(["53/udp"], "53/udp", ["127.0.0.1", "::1"])).toEqual(["127.0.0.1", "::1"]);
    expect(allows(["*/udp"], "53/udp", ["127.0.0.1"])).toEqual(["127.0.0.1"]);
    expect(allows(["10.0.0.0/8:*/udp"], "10.1.2.3:53/udp")).toEqual(["10.1.2.3"]);
  });

  test("what reaches many is reached by no rule that does not name it", () => {
    for (const address of ["224.0.0.251", "255.255.255.255", "ff02::fb"]) {
      const request = `${address.includes(":") ? `[${address}]` : address}:53/udp`;
      for (const rule of ["*:*/udp", "0.0.0.0/0:53/udp", "[::/0]:53/udp"])
        expect(allows([rule], request)).toEqual([]);
    }
  });

  test("rules are listed and taken back in canonical spelling", () => {
    const list = new AllowList();
    expect(["22", "localhost:22", "[::1]:*", "[FD00::/8]:5", "*:80"].map((rule) => list.add(rule))).toEqual([
      "localhost:22",
      "localhost:22",
      "[::1]:*",
      "[fd00::/8]:5",
      "*:80",
    ]);
    expect(list.remove("22")).toBe(true);
    expect(list.remove("22")).toBe(false);
    expect(list.rules).toEqual(["[::1]:*", "[fd00::/8]:5", "*:80"]);
    expect(["53/udp", "*:*/udp", "8/tcp", "8-9/udp"].map((rule) => list.add(rule))).toEqual([
      "localhost:53/udp",
      "*:*/udp",
      "localhost:8",
      "localhost:8-9/udp",
    ]);
    expect([list.remove("53"), list.remove("53/udp")]).toEqual([false, true]);
  });

  test.each([
    "",
    "x:y:22",
    "22/sctp",
    "10.0.0.0/33:22",
    "[fd00::/129]:1",
    "db/8:22",
    "10.0.0.0/:22",
    "25-22",
    "22-",
    "*-22",
    "0.0.0.0:22",
    "[::]:22",
  ])("refused as a rule: %s", (rule) => expect(() => new AllowList().add(rule)).toThrow(SpecError));
});

test("a target in a purpose is checked like any input", () => {
  expect(readPurposeTarget({ host: "LocalHost", port: 22 })).toEqual({
    ...{ kind: "tcp", host: "localhost", port: 22 },
  });
  expect(formatTarget(readPurposeTarget({ host: "::1", port: 22 }))).toBe("[::1]:22");
  expect(formatTarget(readPurposeTarget({ kind: "udp", host: "::1", port: 53 }))).toBe("[::1]:53/udp");
  const hostile = [
    {},
    { host: "a", port: "22" },
    { host: "a", port: 22.5 },
    { host: "a", port: 0 },
    { host: "a\nb", port: 22 },
    { host: "fe80::1%eth0", port: 22 },
    { host: "/run/x.sock", port: 22 },
    ...[
      "",
      "x",
      "/",
      "/a/../b",
      "/a/./b",
      "//a",
      "/a/",
      "/a\0b",
      `/${"x".repeat(103)}`,
      7,
      ["/a"],
      undefined,
    ].map((path) => ({ kind: "unix", path })),
    { kind: "socks", host: "a", port: 22 },
    { host: "x".repeat(300), port: 22 },
    { host: ["localhost"], port: 22 },
    { kind: "sctp", host: "a", port: 22 },
    { kind: null, host: "a", port: 22 },
  ];
  for (const purpose of hostile) expect(() => readPurposeTarget(purpose)).toThrow(Refusal);
});
