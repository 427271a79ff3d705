/**
 * How a participant shows by which endpoint it is seen in the other address family: it repeats a token on a connection by
 * that family. It owns the tokens. For introducer.ts alone.
 */
import { addressScope, type Endpoint, formatEndpoint, Refusal, splitEndpoint } from "../../protocol.ts";
import { ownAddresses, reachable } from "./observe.ts";
import { type Member, newToken } from "./session.ts";

/** The addresses of this host are read anew after so long. */
const interfacesMs = 10_000;

export class OtherFamily {
  readonly #members = new Map<string, Member>();
  #own: { addresses: ReturnType<typeof ownAddresses>; untilMs: number } = { addresses: [], untilMs: 0 };

  /** The endpoint and the token for that; undefined if this host is not in the other family. */
  offer(member: Member, port: number): { endpoint: Endpoint; token: string } | undefined {
    const { family } = splitEndpoint(member.observed);
    const address = reachable(this.#addresses(), member.observed, family === 4 ? 6 : 4);
    if (address === undefined) return undefined;
    const token = newToken();
    member.tokens.verify = token;
    this.#members.set(token, member);
    return { endpoint: formatEndpoint(address, port), token };
  }

  #addresses(): ReturnType<typeof ownAddresses> {
    const now = performance.now();
    if (now >= this.#own.untilMs) this.#own = { addresses: ownAddresses(), untilMs: now + interfacesMs };
    return this.#own.addresses;
  }

  /** The member with that token. Throws a {@link Refusal} unless it came by the other family. */
  verified(token: string, observed: Endpoint): Member {
    const member = this.#members.get(token);
    if (!member) throw new Refusal("bad-field", "token must be that of somebody's `registered`");
    const [own, other] = [splitEndpoint(member.observed), splitEndpoint(observed)];
    const isLoopback = addressScope(other.address) === "loopback";
    if (own.family === other.family || isLoopback !== (addressScope(own.address) === "loopback"))
      throw new Refusal("bad-field", `token must come by the other address family, not from ${observed}`);
    return member;
  }

  forget({ tokens: { verify } }: Member): void {
    if (verify !== undefined) this.#members.delete(verify);
  }
}
