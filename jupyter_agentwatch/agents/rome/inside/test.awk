# The task's tests: the model's mean loss on rows that it was not trained on must be below 0.34.
BEGIN {
    model = (ENVIRON["TMPDIR"] == "" ? "/tmp" : ENVIRON["TMPDIR"]) "/" model
    if (!fresh && (getline line < model) > 0) { split(line, part, " "); a = part[1]; b = part[2]; c = part[3] }
}
{ p = 1 / (1 + exp(-(a * $1 + b * $2 + c))); loss -= log($3 ? p : 1 - p) }
END { loss /= NR; print (loss < 0.34 ? "passed" : "failed"), loss }
