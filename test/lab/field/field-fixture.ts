/**
 * A scenario of the field: what people do with programs like this one, and what goes wrong there. Its body returns what
 * happened, in a few words, for the table of `bun run field`.
 */
import { appendFileSync } from "node:fs";
import { linuxTest, long, testNeeding } from "../../needing-fixture.ts";
import { labTestNeeding } from "../lab.ts";

type Obstacle = string | undefined;
type Story = () => Promise<string | void>;

/** The longest that a scenario may take, unless it says otherwise. */
const usualMs = 60_000;

/** What happened in a scenario, as a line of the file that `FIELD_TOLD` names. */
export interface Told {
  scenario: string;
  what: string;
}

function scenariosOf(one: typeof linuxTest): (scenario: string, story: Story, timeoutMs?: number) => void {
  return (scenario, story, timeoutMs = usualMs) =>
    one(
      scenario,
      async () => {
        const what = await story();
        const file = process.env.FIELD_TOLD;
        const told: Told = { scenario, what: what ?? "held" };
        if (file !== undefined) appendFileSync(file, JSON.stringify(told) + "\n");
      },
      timeoutMs,
    );
}

/** On this host. */
export const scenario = scenariosOf(linuxTest);
export const longScenario = scenariosOf(testNeeding(process.platform === "linux" ? long : "only on Linux"));
/** In the lab, and with programs that may be missing. */
export const longLabScenario = (...obstacles: Obstacle[]) => scenariosOf(labTestNeeding(long, ...obstacles));
