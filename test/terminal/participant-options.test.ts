/** The first look at a command line finds the words and the introducer that the program's own reading finds. */
import { expect, setDefaultTimeout, test } from "bun:test";
import { likelyWords } from "../../native/terminal/likely-words.ts";
import { likelyIntroducer } from "../../native/terminal/participant-options.ts";
import { readHostPort } from "../../native/terminal/invitation.ts";
import { type Arguments, readArguments } from "../../native/terminal/participant-arguments.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

test.each([
  [["host"], {}, undefined],
  [["host"], { ROOM: "of the environment" }, "of the environment"],
  [["host", "--room", "two words"], { ROOM: "others" }, "two words"],
  [["--room=two words", "host", "--name", "a"], {}, "two words"],
  [["some words@host:7"], { ROOM: "others" }, "some words"],
  [["-q", "--pipe", "bob:22"], { INTRODUCER: "some words@host" }, "some words"],
  [["host", "--room", "new"], {}, undefined],
  [["-q", "10.0.0.1:7001", "--connect", "--room", "some words"], { INTRODUCER: "host" }, "some words"],
  [["receive", "some words@[::1]:7", "."], { INTRODUCER: "host" }, "some words"],
  [["reach", "gjec-p272-r0uw-hs8m@host"], {}, "gjec-p272-r0uw-hs8m"],
  [["some words.gjec-p272-r0uw-hs8m-z@host"], {}, "some words"],
  [[".gjec-p272-r0uw-hs8m-z@host", "--key", "x@y"], {}, undefined],
  [["send", "a@b", "--via", "host"], { ROOM: "others" }, undefined],
  [["host", "--room", "-"], {}, undefined],
] as const)("%p with %p: %p", (args, env, words) => {
  const before = { ROOM: process.env.ROOM, INTRODUCER: process.env.INTRODUCER };
  for (const name of ["ROOM", "INTRODUCER"] as const) delete process.env[name];
  Object.assign(process.env, env);
  try {
    const read = readArguments([...args]);
    if (typeof read === "string") throw new Error("unreachable");
    const isMade = read.room === "new" || read.room === "-";
    expect<unknown>([likelyWords(args, env), isMade ? undefined : read.room]).toEqual([words, words]);
    const place = read.introducer === undefined ? undefined : readHostPort(read.introducer);
    expect(likelyIntroducer(args, env)).toEqual(place);
  } finally {
    for (const name of ["ROOM", "INTRODUCER"] as const) {
      const value = before[name];
      if (value === undefined) delete process.env[name];
      else process.env[name] = value;
    }
  }
});

test("the port that is forwarded is known, too, and a wrong one begins nothing", () => {
  const args = (port: string) => ["host:7001", "--port", port, "--room", "some words"];
  const read = readArguments(args("7777"));
  expect(typeof read === "object" && read.localPort).toBe(7777);
  expect(likelyIntroducer(args("7777"), {})).toEqual({ host: "host", port: 7001, localPort: 7777 });
  for (const wrong of ["80", "99999", "x", "+7777"])
    expect(likelyIntroducer(args(wrong), {})).toBeUndefined();
});

test("who hides, remembers, limits and leaves out says so; and who hides is called by no host's name", () => {
  const read = (...args: string[]) => readArguments(["host", "--room", "some words", ...args]) as Arguments;
  const all = ["--only-relay", "--remember", "--limit", "2M", "--exclude", "*.tmp", "--exclude", "raw/"];
  const { onlyRelay, remember, limit, exclude, name } = read(...all);
  expect([onlyRelay, remember, limit, exclude]).toEqual([true, true, 2 * 1024 * 1024, ["*.tmp", "raw/"]]);
  expect(name).toMatch(/^guest-[0-9a-f]{6}$/);
  const plain = read();
  expect([plain.onlyRelay, plain.remember, plain.limit, plain.exclude, plain.localPort]).toEqual([
    false,
    false,
    undefined,
    [],
    undefined,
  ]);
  expect(plain.name).not.toStartWith("guest-");
});

test("of arguments that are wrong, or that ask for help, nothing follows", () => {
  for (const args of [
    ["--nonsense", "host"],
    ["host", "--help"],
    ["--version", "host"],
    ["--name"],
    ["a:b:c"],
  ])
    expect(likelyIntroducer(args, {})).toBeUndefined();
});

test.each([
  [["host", "--send", "a", "b", "c"], {}, ["a", "b", "c"], "host"],
  [["host", "--send", "a", "b", "--connect", "bob", "--send=c", "d"], {}, ["a", "b", "c", "d"], "host"],
  [["--send", "a", "b", "-q"], { INTRODUCER: "host" }, ["a", "b"], "host"],
  [["--via", "host", "--send", "a", "b", "--name", "ann"], {}, ["a", "b"], "host"],
  [["--send", "a", "host", "b"], {}, ["a", "b"], "host"],
  [["-L", "1:bob:2", "--send", "a", "host"], {}, ["a"], "host"],
] as const)("%p with %p sends %p by %s", (args, env, paths, introducer) => {
  const before = { ROOM: process.env.ROOM, INTRODUCER: process.env.INTRODUCER };
  delete process.env.INTRODUCER;
  Object.assign(process.env, { ROOM: "some words", ...env });
  try {
    const read = readArguments([...args]);
    if (typeof read === "string") throw new Error("unreachable");
    expect<unknown>([read.send, read.introducer]).toEqual([paths, introducer]);
    expect(likelyIntroducer(args, env)).toEqual(readHostPort(introducer));
  } finally {
    for (const name of ["ROOM", "INTRODUCER"] as const) delete process.env[name];
    for (const [name, value] of Object.entries(before))
      if (value !== undefined) Object.assign(process.env, { [name]: value });
  }
});
