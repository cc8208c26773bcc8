in vec2 v_at;
out vec4 color;
uniform sampler2D picture;
uniform float texel;    // of the supersampled picture
void main() {   // a tent over 4×4 samples of a picture twice the size
    vec2 at = v_at * 0.5 + 0.5;
    vec3 sum = vec3(0);
    for (int i = 0; i < 2; ++i)
        for (int j = 0; j < 2; ++j) sum += texture(picture, at + (vec2(i, j) - 0.5) * texel * 1.25).rgb;
    color = vec4(sum * 0.25, 1.0);
}
