/** What the tests of the participant as a program share. */
import type { Introducer } from "../../introducer.ts";
import type { Endpoint } from "../../protocol.ts";

export const at = (text: string) => text as Endpoint;

/** Resolves once the introducer's list has so many participants that say they are linked. */
export async function knownLinks(introducer: Introducer, count: number, each = 1): Promise<void> {
  while (introducer.participants.filter(({ linked }) => linked.length === each).length !== count)
    await Bun.sleep(5);
}
