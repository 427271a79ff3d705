/**
 * What our NAT gives next, measured for the rounds of one introduction: where one stands that counts, or a fresh mapping.
 * Owns the measurement that is begun with our `connect`, and counts those that we are asked for. It knows nothing of a
 * round. For native/punch/encounter.ts.
 */
import type { Peer, Prediction, Way } from "../../protocol.ts";
import type { PunchContext } from "./context.ts";
import { observeFresh, predict } from "./mapping.ts";

export interface Predicted {
  prediction: Prediction | undefined;
  /** Of the fresh mapping. */
  localPort?: number;
}

export class Predictor {
  readonly #context: PunchContext;
  readonly #maxMeasures: number;
  #measures = 0;
  #early: Promise<Prediction | undefined> | undefined;

  constructor(context: PunchContext, maxMeasures: number) {
    this.#context = context;
    this.#maxMeasures = maxMeasures;
  }

  /** What the introducer is going to ask, if the first round is likely to want to know where our NAT stands. */
  begin(peer: Peer): void {
    const isLikely = this.#context.behaviour?.mapping === "sequential" && peer.mapping !== "random";
    if (isLikely) this.#early = this.predict(peer);
  }

  /** Whether the introducer may ask once more; a true answer counts it. */
  mayMeasure(): boolean {
    return ++this.#measures <= this.#maxMeasures;
  }

  async measure(way: Way, peer: Peer): Promise<Predicted> {
    const early = this.#early;
    this.#early = undefined;
    if (way !== "fresh") return { prediction: await (early ?? this.predict(peer)) };
    const [probe] = this.#context.probes;
    const fresh = probe && (await this.#fresh(() => observeFresh(probe)));
    if (!fresh) return { prediction: undefined };
    return { prediction: { endpoint: fresh.observed, step: 0 }, localPort: fresh.port };
  }

  async predict({ id }: Peer): Promise<Prediction | undefined> {
    const { probes, probeToken: token, behaviour } = this.#context;
    const step = behaviour?.step || 1;
    const says = token === undefined ? undefined : ({ type: "probe", token, peer: id, step } as const);
    const [probe] = probes;
    return probe && this.#fresh(() => predict(probe, step, says));
  }

  /** Tells where our NAT, which counts, stands now. A punch has taken ports, and the next one may be asked for at once. */
  async tell(): Promise<void> {
    const { behaviour, probes, send } = this.#context;
    const [probe] = probes;
    if (behaviour?.mapping !== "sequential" || !probe) return;
    const prediction = await this.#fresh(() => predict(probe, behaviour.step || 1));
    if (prediction) send({ type: "mapping", mapping: "sequential", prediction });
  }

  /** Undefined when it can't be measured, or too much is being measured already; never rejects. */
  #fresh<T>(measure: () => Promise<T | undefined>): Promise<T | undefined> {
    return this.#context.measureFresh(measure).catch(() => undefined);
  }
}
