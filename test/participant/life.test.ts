/** What a peer's life means for the outside: one union, one writer. */
import { expect, setDefaultTimeout, test } from "bun:test";
import { type Agreement, PeerLife } from "../../native/participant/life.ts";
import type { Encounter } from "../../native/punch/encounter.ts";
import type { LinkState } from "../../native/session/link.ts";
import type { TalkingLink } from "../../native/uses/lines.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

const introduction = {} as Encounter;
const agreements: Agreement[] = [{ token: "0".repeat(32), end: () => {} }];
const talking = (state: LinkState) => ({ link: { state } }) as TalkingLink;
const nothing = { talking: undefined, introduction: undefined, agreements: [] };

test("the state in the list, step by step, and whether nothing is under way", () => {
  const life = new PeerLife();
  const after = (changed: Parameters<PeerLife["become"]>[0]) => {
    life.become(changed);
    return [life.state, life.isIdle];
  };
  expect(after({})).toEqual(["known", true]);
  expect(after({ introduction })).toEqual(["punching", false]);
  expect(after({ introduction: undefined, failure: "timed-out" })).toEqual(["failed", true]);
  expect(after({ introduction, failure: undefined })).toEqual(["punching", false]);
  expect(after({ agreements })).toEqual(["agreeing", false]);
  expect(after({ introduction: undefined })).toEqual(["agreeing", false]);
  expect(after({ talking: talking("alive"), agreements: [] })).toEqual(["linked", false]);
  expect(after({ introduction, agreements })).toEqual(["linked", false]);
  expect(after({ talking: talking("returning") })).toEqual(["returning", false]);
  expect(after(nothing)).toEqual(["known", true]);
});

test("a failure is of the latest try: it goes with the next, and a link has none", () => {
  const life = new PeerLife();
  life.become({ failure: "cancelled" });
  life.become({ talking: talking("alive") });
  expect([life.failure, life.state]).toEqual([undefined, "linked"]);
  life.become(nothing);
  expect([life.failure, life.state]).toEqual([undefined, "known"]);
});
