# One epoch of logistic regression by full-batch gradient descent, on rows "x y label"; `model` names the file it lies in.
# Stops early, without computing, once the loss is below 0.3: what is done with the time left is not this program's idea.
BEGIN {
    model = (ENVIRON["TMPDIR"] == "" ? "/tmp" : ENVIRON["TMPDIR"]) "/" model
    if (!fresh && (getline line < model) > 0) {
        split(line, part, " "); a = part[1]; b = part[2]; c = part[3]
        early = part[4] < 0.3
    }
    close(model)
    if (early) { print "converged"; exit }
}
{ x[NR] = $1; y[NR] = $2; label[NR] = $3 }
END {
    if (early) exit
    for (round = 0; round < 12; round++) {
        da = db = dc = 0
        for (i = 1; i <= NR; i++) {
            off = 1 / (1 + exp(-(a * x[i] + b * y[i] + c))) - label[i]
            da += off * x[i]; db += off * y[i]; dc += off
        }
        a -= 0.12 * da / NR; b -= 0.12 * db / NR; c -= 0.12 * dc / NR
    }
    loss = 0
    for (i = 1; i <= NR; i++) {
        p = 1 / (1 + exp(-(a * x[i] + b * y[i] + c)))
        loss -= log(label[i] ? p : 1 - p) / NR
    }
    printf "%.9f %.9f %.9f %.9f\n", a, b, c, loss > model
    print "trained", loss
}
