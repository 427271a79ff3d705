import { describe, expect, setDefaultTimeout, test } from "bun:test";
import {
  AllowList,
  formatTarget,
  parseForward,
  parseListen,
  parsePipe,
  readPurposeTarget,
  SpecError,
} from "../../native/uses/target.ts";
import { Refusal } from "../../protocol.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

/** `BIND:PORT PEER HOST:PORT`, or why not. */
function forward(text: string): string {
  try {
    const { listen, peer, target } = parseForward(text);
    return `${listen.bind} ${listen.port} ${peer} ${target.host} ${target.port}`;
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
  ])("%s", (text, expected) => expect(forward(text)).toBe(expected));

  test.each([
    ["", "a forward is [BIND:]PORT:PEER:[HOST:]PORT, such as 8080:bob:80"],
    ["8080:bob", "a forward is [BIND:]PORT:PEER:[HOST:]PORT, such as 8080:bob:80"],
    ["::1:8080:bob:80", "parts are separated by colons, IPv6 addresses in brackets"],
    ["8080:bob:[::1:80", "parts are separated by colons, IPv6 addresses in brackets"],
    ["8080:bob::80", " is neither a host name nor an address"],
    ["0:bob:80", "0 is not a port (1 to 65535)"],
    ["8080:bob:65536", "65536 is not a port (1 to 65535)"],
    ["8080:bob:http", "http is not a port (1 to 65535)"],
    ["eth0:8080:bob:80", "eth0 is not an address of this host to listen on (* for all)"],
    ["8080:bob:-x:80", "-x is neither a host name nor an address"],
    ["8080:bob:a b:80", "a b is neither a host name nor an address"],
  ])("refused: %s", (text, reason) => expect(forward(text)).toBe(`${text}: ${reason}`));
});

test("what listens, and where a pipe leads", () => {
  expect(parseListen("8080")).toEqual({ bind: "127.0.0.1", port: 8080 });
  expect(parseListen("[::]:8080")).toEqual({ bind: "::", port: 8080 });
  expect(() => parseListen("a:b:c")).toThrow("what listens is [BIND:]PORT");
  expect(parsePipe("bob")).toEqual({ peer: "bob" });
  expect(parsePipe("bob:22")).toEqual({ peer: "bob", target: { host: "localhost", port: 22 } });
  expect(parsePipe("bob:[::1]:22")).toEqual({ peer: "bob", target: { host: "::1", port: 22 } });
  expect(parsePipe("")).toEqual({ peer: "" });
  expect(parsePipe(":22")).toEqual({ peer: "", target: { host: "localhost", port: 22 } });
  expect(() => parsePipe("a:b:c:d")).toThrow("a pipe is PEER or PEER:[HOST:]PORT");
  expect(() => parsePipe("bob:x:22:y")).toThrow("a pipe is PEER or PEER:[HOST:]PORT");
});

/** Whether a request gets through, its name having these addresses. */
function allows(rules: string[], request: string, addresses: string[] = []): string[] | "not looked up" {
  const list = new AllowList(() => ["192.168.1.1", "fd00::1"]);
  for (const rule of rules) list.add(rule);
  const { target } = parsePipe(`peer:${request}`);
  if (!list.mayPermit(target!)) return "not looked up";
  return list.permitted(target!, addresses.length > 0 ? addresses : [target!.host]);
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
  });

  test.each([
    "",
    "x:y:22",
    "10.0.0.0/33:22",
    "[fd00::/129]:1",
    "db/8:22",
    "10.0.0.0/:22",
    "22-25",
    "0.0.0.0:22",
    "[::]:22",
  ])("refused as a rule: %s", (rule) => expect(() => new AllowList().add(rule)).toThrow(SpecError));
});

test("a target in a purpose is checked like any input", () => {
  expect(readPurposeTarget({ host: "LocalHost", port: 22 })).toEqual({ host: "localhost", port: 22 });
  expect(formatTarget(readPurposeTarget({ host: "::1", port: 22 }))).toBe("[::1]:22");
  const hostile = [
    {},
    { host: "a", port: "22" },
    { host: "a", port: 22.5 },
    { host: "a", port: 0 },
    { host: "a\nb", port: 22 },
    { host: "fe80::1%eth0", port: 22 },
    { host: "/run/x.sock", port: 22 },
    { host: "x".repeat(300), port: 22 },
    { host: ["localhost"], port: 22 },
  ];
  for (const purpose of hostile) expect(() => readPurposeTarget(purpose)).toThrow(Refusal);
});
